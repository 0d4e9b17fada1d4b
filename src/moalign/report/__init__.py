"""The page of results: its template, style and script, and the plots and pictures that it carries inside."""
