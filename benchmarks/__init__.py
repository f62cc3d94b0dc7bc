"""One script a claim, its JSON and its picture; `render` puts their tables into the README and the docs."""
