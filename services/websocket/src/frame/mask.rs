//! The masking of RFC 6455, section 5.3.

/// Applies `key` to `data` in place, eight bytes at a time.
pub(super) fn unmask(data: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = data.chunks_exact_mut(8);
    for chunk in &mut words {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::unmask;

    #[test]
    fn equals_the_definition_at_every_length() {
        let key = [0x37, 0xFA, 0x21, 0x3D];
        for length in 0..67 {
            let plain: Vec<u8> = (0..length).map(|i| i as u8 ^ 0x5A).collect();
            let expected: Vec<u8> = plain.iter().enumerate().map(|(i, byte)| byte ^ key[i % 4]).collect();
            let mut data = plain.clone();
            unmask(&mut data, key);
            assert_eq!(data, expected);
        }
    }
}
