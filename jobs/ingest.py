"""Find videos and probe them: python -m jobs.ingest --run k8s/runs/quickstart.yaml"""

from jobs.entry_point import stage_entry_point

main = stage_entry_point("ingest", __doc__)

if __name__ == "__main__":
    main()
