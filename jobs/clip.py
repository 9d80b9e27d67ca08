"""Cut videos into single-shot clips: python -m jobs.clip --run k8s/runs/quickstart.yaml"""

from jobs.door import stage_door

main = stage_door("clip", __doc__)

if __name__ == "__main__":
    main()
