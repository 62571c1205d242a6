"""What the Linen and the NNX wrappers share; imports no Flax."""
