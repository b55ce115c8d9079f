"""Archives from outside, tar or zip, whose members become objects. Nothing that they say of themselves is believed
before it was looked at: names, types, sizes, offsets.

`listing.members_of` says what is in one, `small.stage` and `large.stage` bring members into partial files.
"""
