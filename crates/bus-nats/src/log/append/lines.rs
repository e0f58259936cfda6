//! The lines of a lane, found by channel or by number.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::log::line::Line;

/// Numbers are used again; which append is meant, its own number says.
#[derive(Default)]
pub(super) struct Lines {
    by_channel: HashMap<Arc<str>, usize>,
    lines: Vec<Option<Line>>,
    free: Vec<usize>,
}

impl Lines {
    pub fn is_empty(&self) -> bool {
        self.by_channel.is_empty()
    }

    /// The number of the channel's line, which is made when there is none.
    pub fn of(&mut self, channel: &Arc<str>) -> usize {
        if let Some(at) = self.by_channel.get(channel) {
            return *at;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.lines.push(None);
            self.lines.len() - 1
        });
        self.lines[at] = Some(Line::new(channel.clone()));
        self.by_channel.insert(channel.clone(), at);
        at
    }

    pub fn get(&mut self, at: usize) -> Option<&mut Line> {
        self.lines.get_mut(at)?.as_mut()
    }

    pub fn remove(&mut self, at: usize) {
        if let Some(line) = self.lines.get_mut(at).and_then(Option::take) {
            self.by_channel.remove(&line.channel);
            self.free.push(at);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, &Line)> {
        self.lines.iter().enumerate().filter_map(|(at, line)| Some((at, line.as_ref()?)))
    }
}
