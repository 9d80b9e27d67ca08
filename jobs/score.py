"""Score clips, and keep or drop them: python -m jobs.score --run k8s/runs/quickstart.yaml"""

from jobs.door import stage_door

main = stage_door("score", __doc__)

if __name__ == "__main__":
    main()
