"""Write captions for what was kept: python -m jobs.caption --run k8s/runs/quickstart.yaml"""

from jobs.door import stage_door

main = stage_door("caption", __doc__)

if __name__ == "__main__":
    main()
