"""What a run leaves behind: COGs, a preview, a STAC Item and the record, in a folder that is whole or untouched."""
