"""Fine-tune the model: python -m jobs.train --run k8s/runs/quickstart.yaml"""

from jobs.entry_point import stage_entry_point

main = stage_entry_point("train", __doc__)

if __name__ == "__main__":
    main()
