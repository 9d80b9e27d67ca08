"""Sample from checkpoints and write the report: python -m jobs.evaluate --run k8s/runs/quickstart.yaml"""

from jobs.entry_point import stage_entry_point

main = stage_entry_point("evaluate", __doc__)

if __name__ == "__main__":
    main()
