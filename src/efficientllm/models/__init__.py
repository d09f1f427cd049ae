"""Models: our decoder, the transformers arm, checkpoints, and fusing as a step."""
