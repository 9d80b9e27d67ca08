"""Sample from checkpoints and write the report: python -m jobs.evaluate --run k8s/runs/quickstart.yaml"""

from jobs.door import stage_door

main = stage_door("evaluate", __doc__)

if __name__ == "__main__":
    main()
