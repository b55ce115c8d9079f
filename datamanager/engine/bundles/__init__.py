"""Archive bundles: made of files of one machine, stored on another one, and read back member by member.

`bundle_upload`, `member_files` and `recall` are what flows call. A bundle in the making is a *virtual file*: its layout
is known before a byte moves, so it can be read at any offset, and the transfer engine sends it as it sends a file.
(docs/adr/0008)
"""
