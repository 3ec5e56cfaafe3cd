"""Rendered or imported images: screened, tried again, encoded."""
