"""The five places where a concept may touch a model: text, linear, attention, feature, sampler."""
