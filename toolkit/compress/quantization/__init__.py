"""INT8: the encoder's linear layers computed as integers will be, learnt or calibrated."""
