"""An output folder to look at: contact sheet, pages, live status."""
