"""Score clips, and keep or drop them: python -m jobs.score --run k8s/runs/quickstart.yaml"""

from jobs.entry_point import stage_entry_point

main = stage_entry_point("score", __doc__)

if __name__ == "__main__":
    main()
