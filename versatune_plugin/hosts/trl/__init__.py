"""The SFT trainer of TRL."""
