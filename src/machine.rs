//! The machine: which processors this process may use, how they belong together, and where its threads run.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use memmap2::MmapMut;

/// Where the kernel describes the machine.
const SYS: &str = "/sys/devices/system";

/// How threads and memory are laid over the nodes of a machine with several memories (NUMA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numa {
    /// Threads are spread over all nodes in turn, and so is the memory that is read from now on.
    Distribute,
    /// All threads stay on the node that the process started on.
    Isolate,
    /// The threads stay where numactl, or another mask, has put the process.
    Numactl,
}

/// Threads to compute with by default: what the cgroup's quota (v1, v2) and the affinity mask allow, one a physical
/// core. Two threads of a core share its multipliers and its path to memory, so the second adds nothing.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    match physical_cores(Path::new(SYS), &allowed_cpus()) {
        0 => allowed,
        cores => cores.min(allowed),
    }
}

/// Asks for large pages, where the system has such, for what `memory` has room for: of what is read from end to end again and again the
/// processor then looks up one address where it would look up 512. Only a hint, and best before anything is written.
pub fn prefer_large_pages<T>(memory: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let start = (memory.as_mut_ptr() as usize).next_multiple_of(PAGE);
        let end = (memory.as_mut_ptr() as usize + memory.capacity() * size_of::<T>()) / PAGE * PAGE;
        if start < end {
            // SAFETY: whole pages of the vector's own allocation; the advice changes no byte. Where pages are larger the call fails, harmlessly.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// `bytes` zeros, or one, mapped by themselves, in large pages where the system has such. It gives the memory itself when something is
/// written there.
///
/// # Errors
/// If the system gives no such memory.
pub fn map_zeros(bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes.max(1))?;
    // Only a hint, and before the first write, which decides what pages there are.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

/// Physical cores that `cpus` belong to; 0 where the system does not say.
fn physical_cores(sys: &Path, cpus: &[usize]) -> usize {
    let siblings = |cpu: &usize| {
        let topology = sys.join(format!("cpu/cpu{cpu}/topology"));
        let lists = ["core_cpus_list", "thread_siblings_list"];
        lists.iter().find_map(|list| std::fs::read_to_string(topology.join(list)).ok())
    };
    let cores: Option<BTreeSet<String>> = cpus.iter().map(siblings).collect();
    cores.map_or(0, |cores| cores.len())
}

/// The processors of each node that are among `allowed`, nodes without any left out; empty where the system does
/// not say.
fn nodes(sys: &Path, allowed: &[usize]) -> Vec<Node> {
    let online = std::fs::read_to_string(sys.join("node/online")).unwrap_or_default();
    let nodes = parse_list(&online).into_iter().filter_map(|number| {
        let cpus = std::fs::read_to_string(sys.join(format!("node/node{number}/cpulist"))).ok()?;
        let cpus = parse_list(&cpus).into_iter().filter(|cpu| allowed.contains(cpu)).collect();
        Some(Node { number, cpus })
    });
    nodes.filter(|node: &Node| !node.cpus.is_empty()).collect()
}

/// A memory and the processors near it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    number: usize,
    cpus: Vec<usize>,
}

/// `0-3,8` as the kernel writes sets; what is none is left out.
fn parse_list(text: &str) -> Vec<usize> {
    /// No machine has more; a longer range is no set.
    const MOST: usize = 1 << 16;
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        (last < MOST).then_some(first..=last)
    });
    ranges.flatten().collect()
}

/// Memory nodes whose processors this process may use; 0 where the system does not say.
pub fn memory_nodes() -> usize {
    nodes(Path::new(SYS), &allowed_cpus()).len()
}

/// Where each of `threads` threads is to run, its processors, or `None` where all may run anywhere they could
/// before. With one memory node there is nothing to place.
pub fn place(numa: Numa, threads: usize) -> Option<Vec<Vec<usize>>> {
    let nodes = nodes(Path::new(SYS), &allowed_cpus());
    if nodes.len() < 2 {
        return None;
    }
    if numa == Numa::Distribute {
        // Containers may forbid it; memory then lies where the threads that read it first are.
        let _ = interleave(&nodes.iter().map(|node| node.number).collect::<Vec<_>>());
    }
    assign(numa, &nodes, threads, current_cpu())
}

/// The processors of each thread.
fn assign(numa: Numa, nodes: &[Node], threads: usize, here: usize) -> Option<Vec<Vec<usize>>> {
    match numa {
        Numa::Distribute => Some((0..threads).map(|i| nodes[i % nodes.len()].cpus.clone()).collect()),
        Numa::Isolate => {
            let node = nodes.iter().find(|node| node.cpus.contains(&here)).unwrap_or(&nodes[0]);
            Some(vec![node.cpus.clone(); threads])
        }
        Numa::Numactl => None,
    }
}

/// The processors this process may run on; empty where the system does not say.
#[cfg(target_os = "linux")]
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is an empty set, and the call writes no more than its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        set
    };
    // SAFETY: the numbers are below the set's size.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

#[cfg(not(target_os = "linux"))]
fn allowed_cpus() -> Vec<usize> {
    Vec::new()
}

/// Has the calling thread run on `cpus` only.
///
/// # Errors
/// None of the processors may be used.
#[cfg(target_os = "linux")]
pub fn pin_thread(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: the number is below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the call reads no more than the size it is given.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn pin_thread(_cpus: &[usize]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The processor that the caller runs on.
#[cfg(target_os = "linux")]
fn current_cpu() -> usize {
    // SAFETY: takes nothing and only returns a number.
    usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn current_cpu() -> usize {
    0
}

/// Has pages that are allocated from now on, the page cache's too, taken from `nodes` in turn.
#[cfg(target_os = "linux")]
fn interleave(nodes: &[usize]) -> io::Result<()> {
    const WORDS: usize = 16;
    let mut mask = [0 as libc::c_ulong; WORDS];
    let bits = libc::c_ulong::BITS as usize;
    for &node in nodes {
        if let Some(word) = mask.get_mut(node / bits) {
            *word |= 1 << (node % bits);
        }
    }
    // SAFETY: the mask has the bits that are announced and is only read.
    let result =
        unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_INTERLEAVE, mask.as_ptr(), WORDS * bits) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn interleave(_nodes: &[usize]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of two nodes with two cores of two threads each; processor `i` and `i + 4` share a core.
    fn two_nodes() -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = sys.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for cpu in 0..8 {
            let core = cpu % 4;
            write(&format!("cpu/cpu{cpu}/topology/core_cpus_list"), &format!("{core},{}\n", core + 4));
        }
        write("node/online", "0-1\n");
        write("node/node0/cpulist", "0-1,4-5\n");
        write("node/node1/cpulist", "2-3,6-7\n");
        sys
    }

    #[test]
    fn threads_of_a_core_count_once() {
        let sys = two_nodes();
        assert_eq!(physical_cores(sys.path(), &[0, 1, 2, 3, 4, 5, 6, 7]), 4);
        assert_eq!(physical_cores(sys.path(), &[1, 5, 6]), 2);
        assert_eq!(physical_cores(sys.path(), &[1, 99]), 0, "what is not described is not counted");
        assert!(default_threads() >= 1);
        assert!(default_threads() <= std::thread::available_parallelism().unwrap().get());
    }

    #[test]
    fn threads_go_where_they_should() {
        let sys = two_nodes();
        let all = nodes(sys.path(), &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(all.iter().map(|node| node.number).collect::<Vec<_>>(), [0, 1]);
        let spread = assign(Numa::Distribute, &all, 3, 0).unwrap();
        assert_eq!(spread, [vec![0, 1, 4, 5], vec![2, 3, 6, 7], vec![0, 1, 4, 5]]);
        assert_eq!(assign(Numa::Isolate, &all, 1, 6).unwrap(), [vec![2, 3, 6, 7]]);
        assert_eq!(assign(Numa::Numactl, &all, 1, 6), None);
        let masked = nodes(sys.path(), &[2, 7]);
        assert_eq!(masked, [Node { number: 1, cpus: vec![2, 7] }]);
        assert!(nodes(&sys.path().join("none"), &[0]).is_empty());
    }

    #[test]
    fn sets_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list("x,3,4-y,1-99999999999,\n"), [3]);
        assert!(parse_list("\n").is_empty());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_can_be_pinned_to_what_it_may_use_and_to_nothing_else() {
        let allowed = allowed_cpus();
        let one = allowed[0];
        std::thread::spawn(move || {
            pin_thread(&[one]).unwrap();
            assert_eq!((allowed_cpus(), current_cpu()), (vec![one], one));
            assert!(pin_thread(&[]).is_err());
        })
        .join()
        .unwrap();
        assert_eq!(allowed_cpus(), allowed, "other threads are not concerned");
    }
}
