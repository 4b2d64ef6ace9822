"""What joins the mixture to a trainer: the mixin, its callback, and one room per host."""
