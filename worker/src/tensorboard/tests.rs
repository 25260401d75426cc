//! The event file grows at its end, is the same whoever wrote it, and is replaced only by another history.

use super::*;
use std::os::unix::fs::MetadataExt;

fn rows(count: usize) -> Vec<Row> {
    let train = Tail { loss: 3.0, count: 2, correct: 1 };
    let validation = |i: usize| if i % 3 == 2 { Tail { loss: 1.0, count: 4, correct: 3 } } else { Tail::default() };
    (0..count).map(|i| Row { train, lr: 0.1, grad_norm: i as f64, validation: validation(i) }).collect()
}

fn bytes(board: &Board) -> Vec<u8> {
    std::fs::read(board.path()).unwrap()
}

/// What one writer says that writes once.
fn at_once(count: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::new(folder.path(), "{}");
    board.write(&rows(count), Epoch::default()).unwrap();
    bytes(&board)
}

#[test]
fn a_file_that_grew_is_the_file_that_was_written_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::new(folder.path(), "{}");
    let mut inode = None;
    for (said, then) in [(2, 2), (5, 5), (3, 5), (9, 9)] {
        board.write(&rows(said), Epoch::default()).unwrap();
        assert_eq!(bytes(&board), at_once(then));
        let now = std::fs::metadata(board.path()).unwrap().ino();
        assert_eq!(*inode.get_or_insert(now), now, "whoever has the file open sees it grow");
    }
}

#[test]
fn a_validation_that_comes_after_its_step_was_written_is_added_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::new(folder.path(), "{}");
    let mut early = rows(3);
    early[2].validation = Tail::default();
    board.write(&early, Epoch::default()).unwrap();
    let before = bytes(&board);
    board.write(&rows(4), Epoch::default()).unwrap();
    assert!(bytes(&board).starts_with(&before));
    assert_eq!(bytes(&board), at_once(4));
}

#[test]
fn what_a_killed_writer_left_of_a_record_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::new(folder.path(), "{}");
    let whole = at_once(4);
    for cut in 0..whole.len() {
        std::fs::create_dir_all(folder.path().join("tensorboard")).unwrap();
        std::fs::write(board.path(), &whole[..cut]).unwrap();
        board.write(&rows(4), Epoch::default()).unwrap();
        assert_eq!(bytes(&board), whole, "cut at {cut}");
    }
}

#[test]
fn another_history_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::new(folder.path(), "{}");
    let mut other = rows(4);
    other[1].lr = 0.5;
    board.write(&other, Epoch::default()).unwrap();
    board.write(&rows(4), Epoch::default()).unwrap();
    assert_eq!(bytes(&board), at_once(4));
    assert_eq!(std::fs::read_dir(folder.path().join("tensorboard")).unwrap().count(), 1, "nothing is left beside it");
}
