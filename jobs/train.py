"""Fine-tune the model: python -m jobs.train --run k8s/runs/quickstart.yaml"""

from jobs.door import stage_door

main = stage_door("train", __doc__)

if __name__ == "__main__":
    main()
