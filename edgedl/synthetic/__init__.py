"""What embedded data is made of: pictures, speech and numbers, the same bytes on any machine."""
