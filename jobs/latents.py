"""Encode clips and captions into packs: python -m jobs.latents --run k8s/runs/quickstart.yaml"""

from jobs.door import stage_door

main = stage_door("latents", __doc__)

if __name__ == "__main__":
    main()
