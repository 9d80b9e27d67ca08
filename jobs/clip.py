"""Cut videos into single-shot clips: python -m jobs.clip --run k8s/runs/quickstart.yaml"""

from jobs.entry_point import stage_entry_point

main = stage_entry_point("clip", __doc__)

if __name__ == "__main__":
    main()
