"""Training of everything the world ships: autoencoder, text tower, denoiser, adapters, evaluators."""
