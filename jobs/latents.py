"""Encode clips and captions into packs: python -m jobs.latents --run k8s/runs/quickstart.yaml"""

from jobs.entry_point import stage_entry_point

main = stage_entry_point("latents", __doc__)

if __name__ == "__main__":
    main()
