"""Find videos and probe them: python -m jobs.ingest --run k8s/runs/quickstart.yaml"""

from jobs.door import stage_door

main = stage_door("ingest", __doc__)

if __name__ == "__main__":
    main()
