"""A run's weights as others load them: in open_clip's form and in transformers', with a card."""
