//! Members inside one process: the same contract as TCP links, and faults on demand.
