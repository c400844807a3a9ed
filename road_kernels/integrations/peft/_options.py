"""What enable() was given. A module attribute, so that torch.compile guards it."""

inplace = False
