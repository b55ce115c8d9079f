"""Archives from outside, tar or zip, whose members become objects. Names, types, sizes and offsets in them are checked
before they are used.

`archive_listing.members_of` lists an archive, `member_staging` brings members into partial files.
"""
