"""Where final snapshots are kept, and how they are encrypted; everything is streamed.

- `sealed`   the encryption: one object, written and read in chunks
- `stores`   the object's place: a folder, or a bucket (`s3`)
- `expiry`   the end of an object
"""
