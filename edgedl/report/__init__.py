"""Reports: the JSON document, the terminal table and the HTML page."""
