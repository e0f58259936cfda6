//! Frames to a client: never masked, never fragmented.

use super::Opcode;

/// Longest reason that fits behind the code in a close frame.
const MAX_REASON: usize = 123;

/// Appends the header of a final frame whose payload of `length` bytes follows.
pub(crate) fn header(out: &mut Vec<u8>, opcode: Opcode, length: usize) {
    out.push(0x80 | opcode as u8);
    // Each arm bounds the value that it casts.
    match length {
        0..=125 => out.push(length as u8),
        126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends a close frame; a reason beyond 123 bytes is cut at a character.
pub(crate) fn close_frame(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else { return header(out, Opcode::Close, 0) };
    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
    header(out, Opcode::Close, 2 + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        header(&mut out, Opcode::Binary, length);
        out
    }

    #[test]
    fn lengths_take_the_shortest_form() {
        assert_eq!(encoded(0), [0x82, 0]);
        assert_eq!(encoded(125), [0x82, 125]);
        assert_eq!(encoded(126), [0x82, 126, 0, 126]);
        assert_eq!(encoded(65_535), [0x82, 126, 255, 255]);
        assert_eq!(encoded(65_536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let mut out = Vec::new();
        close_frame(&mut out, Some(3000), &"é".repeat(100));
        assert_eq!(out[1], 2 + 122);
        assert!(std::str::from_utf8(&out[4..]).is_ok());
        out.clear();
        close_frame(&mut out, None, "");
        assert_eq!(out, [0x88, 0]);
    }
}
