"""The main job: plan, compute, verify and repair a store."""
