"""How a start gets into its cluster: it founds one, joins one, or comes back."""
