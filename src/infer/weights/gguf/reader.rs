//! Little-endian reads from a byte slice that end in an error, never in a
//! panic or in an allocation that the bytes do not back.

/// A cursor over untrusted bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) const fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.position.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(format!(
                "the header wants {len} bytes at {}, the file has {}; it is truncated or damaged",
                self.position,
                self.bytes.len()
            ));
        };
        let taken = &self.bytes[self.position..end];
        self.position = end;
        Ok(taken)
    }

    /// Whether `count` entries of at least `smallest` bytes can follow.
    pub(super) fn check_room(&self, what: &str, count: u64, smallest: u64) -> Result<(), String> {
        let left = (self.bytes.len() - self.position) as u64;
        if count.checked_mul(smallest).is_some_and(|needed| needed <= left) {
            Ok(())
        } else {
            Err(format!("the header declares {count} {what}, only {left} bytes follow"))
        }
    }

    /// Text with its length in front. Some writers end it with a null, and
    /// some names are no valid UTF-8: both are mended, as llama.cpp's readers do.
    pub(super) fn string(&mut self) -> Result<String, String> {
        let len = self.u64()?;
        self.check_room("bytes of text", len, 1)?;
        let len = usize::try_from(len).map_err(|_| format!("text of {len} bytes"))?;
        let bytes = self.take(len)?;
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn u8(&mut self) -> Result<u8, String> {
        self.array::<1>().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, String> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
}
