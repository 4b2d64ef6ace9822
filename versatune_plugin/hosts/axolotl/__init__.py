"""The Axolotl plugin."""
