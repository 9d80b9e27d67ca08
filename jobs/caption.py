"""Write captions for what was kept: python -m jobs.caption --run k8s/runs/quickstart.yaml"""

from jobs.entry_point import stage_entry_point

main = stage_entry_point("caption", __doc__)

if __name__ == "__main__":
    main()
