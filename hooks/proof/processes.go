package proof

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"nemoclaw/hooks/witness"
	"nemoclaw/specs/landlock"
)

// processes looks at everybody who lives in the sandbox: Landlock, seccomp, and
// what no layer could do without: no_new_privs and capabilities.
func (b *box) processes() []Layer {
	handled := landlock.Handled(b.asked.ABI)
	c := &census{box: b,
		landlock: b.layer("landlock", fmt.Sprintf("ABI %d: %d rights restricted, %d rules on %d files, writable: %s", b.asked.ABI, count(handled), len(b.asked.Granted), len(b.asked.files()), strings.Join(b.asked.Writable, " "))),
		seccomp:  b.layer("seccomp", fmt.Sprintf("%s, and a second one of %d instructions, sha256 %.6x", b.firstFilter(), len(b.asked.Filter)/instruction, sha256.Sum256(b.asked.Filter))),
		process:  b.layer("process", "no_new_privs, and at most the capabilities "+capabilityList(capabilitySet(b.asked.Capabilities))),
	}
	if b.life == Holds {
		c.take()
	}
	return []Layer{c.landlock, c.seccomp, c.process}
}

// firstFilter says whose the first filter is.
func (b *box) firstFilter() string {
	if len(b.asked.First) == 0 {
		return "the engine's filter"
	}
	return fmt.Sprintf("Docker's default filter of %d instructions, sha256 %.6x", len(b.asked.First)/instruction, sha256.Sum256(b.asked.First))
}

// instruction is the size of struct sock_filter, in bytes.
const instruction = 8

func count(a landlock.Access) (n int) {
	for ; a != 0; a &= a - 1 {
		n++
	}
	return n
}

// census is one look at all inhabitants.
type census struct {
	*box
	landlock, seccomp, process Layer

	kernel map[int]witness.Thread // by thread id; nil: the kernel cannot be looked into
	blind  error                  // why
	known  map[int]bool           // processes that were counted
	tids   int
	held   uint64          // capabilities that anybody holds
	rules  map[int]bool    // numbers of rules seen
	layers map[int]bool    // numbers of layers seen
	first  []byte          // the oldest filter of the first process
	hashes map[string]bool // of the filters below ours
	judged []judged
}

// judged is a thread whose domain and filters were read, and what is wrong with
// them: its children have the same.
type judged struct {
	witness.Thread
	domain, filters error
}

func (c *census) take() {
	pids, err := c.inhabitants()
	if err != nil {
		c.landlock.hide("%v", err)
		c.seccomp.hide("%v", err)
		c.process.hide("%v", err)
		return
	}
	c.known, c.rules, c.layers, c.hashes = map[int]bool{}, map[int]bool{}, map[int]bool{}, map[string]bool{}
	c.snapshot()
	// The first process first: its oldest filter is what the engine meant.
	slices.SortStableFunc(pids, func(x, y int) int {
		switch {
		case x == y:
			return 0
		case x == c.InitPID:
			return -1
		case y == c.InitPID:
			return 1
		}
		return 0
	})
	for _, pid := range pids {
		for _, tid := range threads(pid) {
			c.thread(pid, tid)
		}
	}
	c.sum()
}

// snapshot asks the kernel for all threads.
func (c *census) snapshot() {
	if c.blind = c.prover.blind; c.blind != nil {
		return
	}
	all, err := c.prover.kernel.Threads()
	if err != nil {
		c.blind = err
		return
	}
	c.kernel = make(map[int]witness.Thread, len(all))
	for _, t := range all {
		c.kernel[t.TID] = t
	}
}

func (c *census) thread(pid, tid int) {
	cred, err := readCredentials(pid, tid)
	if err != nil || cred.zombie {
		return // it has ended
	}
	c.known[pid] = true
	c.tids++
	if !cred.noNewPrivs {
		c.process.fault("%s has not set no_new_privs", called(pid))
	}
	most := capabilitySet(c.asked.Capabilities)
	if c.asked.Capabilities == nil {
		most = ^uint64(0)
		c.process.hide("the most that may be held: create did not store it; a container that is created anew has it")
	}
	for _, set := range slices.Sorted(maps.Keys(cred.caps)) {
		c.held |= cred.caps[set]
		if over := cred.caps[set] &^ most; over != 0 {
			c.process.fault("%s holds in %s: %s", called(pid), set, capabilityList(over))
		}
	}
	const both = 2 // filters: the engine's and ours
	if cred.mode != seccompFilter {
		c.seccomp.fault("%s has no filter", called(pid))
	} else if cred.filters >= 0 && cred.filters < both {
		c.seccomp.fault("%s has %d of %d filters", called(pid), cred.filters, both)
	}
	if c.kernel == nil {
		return
	}
	t, ok := c.kernel[tid]
	if !ok {
		return // younger than the snapshot: it has what its parent has, or is looked at next time
	}
	if !t.Confined() {
		c.landlock.fault("%s is in no Landlock domain", called(pid))
	}
	j := c.judge(t)
	if j.domain != nil && t.Confined() {
		c.landlock.fault("%s: %v", called(pid), j.domain)
	}
	if j.filters != nil && cred.mode == seccompFilter {
		c.seccomp.fault("%s: %v", called(pid), j.filters)
	}
}

// judge reads what confines t unless a thread with the same was judged. What
// changes while it is read is taken for a fault, and faults are looked at again;
// to be taken for what create stored it would need the same content.
func (c *census) judge(t witness.Thread) judged {
	j := judged{Thread: t}
	same := slices.IndexFunc(c.judged, func(o judged) bool { return o.SameDomain(t) })
	if same >= 0 {
		j.domain = c.judged[same].domain
	} else {
		j.domain = c.judgeDomain(t)
	}
	if same = slices.IndexFunc(c.judged, func(o judged) bool { return o.SameFilters(t) }); same >= 0 {
		j.filters = c.judged[same].filters
	} else {
		j.filters = c.judgeFilters(t)
	}
	c.judged = append(c.judged, j)
	return j
}

func (c *census) judgeFilters(t witness.Thread) error {
	list, err := c.prover.kernel.Filters(t)
	if err != nil {
		return fmt.Errorf("its filters cannot be read: %w", err)
	}
	if c.first == nil && len(list) > 0 {
		c.first = list[0].Code
	}
	at := slices.IndexFunc(list, func(f witness.Filter) bool { return bytes.Equal(f.Code, c.asked.Filter) })
	switch {
	case at < 0:
		return fmt.Errorf("none of its %d filters is the second one that create stored", len(list))
	case at == 0:
		return fmt.Errorf("it has the second filter, and the first is not below it")
	case len(c.asked.First) > 0 && !bytes.Equal(list[at-1].Code, c.asked.First):
		return fmt.Errorf("the filter below the second one is not the first one that create stored")
	case !bytes.Equal(list[0].Code, c.first):
		return fmt.Errorf("its first filter is not that of the container's first process")
	}
	c.hashes[fmt.Sprintf("%.6x", sha256.Sum256(list[0].Code))] = true
	return nil
}

// sum says in words what was counted.
func (c *census) sum() {
	where := fmt.Sprintf("in all %d processes (%d threads)", len(c.known), c.tids)
	c.process.Active = fmt.Sprintf("%s; held anywhere: %s", where, capabilityList(c.held))
	c.process.Verified = "/proc/PID/status of every thread in the cgroup, the network and the mount namespace"
	if c.kernel == nil {
		c.seccomp.Active = where + ": two filters or more"
		c.seccomp.Verified = "/proc/PID/status of every thread: modes and numbers, not the instructions"
		c.seccomp.hide("the filters' instructions: %v; %s", c.blind, toSee)
		c.landlock.hide("the domains: %v; %s. Where the second filter is loaded the launcher was denied its canary before", c.blind, toSee)
		return
	}
	c.seccomp.Active = fmt.Sprintf("%s: the first filter, sha256 %s, and ours above it", where, strings.Join(slices.Sorted(maps.Keys(c.hashes)), " "))
	c.seccomp.Verified = "the instructions of every filter read in the kernel; modes and numbers in /proc/PID/status"
	c.landlock.Active = fmt.Sprintf("%s: a domain with rules on %s files", where, numbers(c.rules))
	if nested := slices.Max(append(slices.Collect(maps.Keys(c.layers)), 1)); nested > 1 {
		c.landlock.Active += fmt.Sprintf(", and up to %d layers more of the programs' own", nested-1)
	}
	c.landlock.Verified = "every thread's domain read in the kernel, each rule compared with what create stored, after a domain of known content was read the same way"
}

// toSee is what it takes to look into the kernel.
const toSee = "it takes root with CAP_BPF and CAP_PERFMON, and a kernel with /sys/kernel/btf/vmlinux that is not locked down for confidentiality"

func numbers(set map[int]bool) string {
	var words []string
	for _, n := range slices.Sorted(maps.Keys(set)) {
		words = append(words, fmt.Sprint(n))
	}
	return strings.Join(words, " or ")
}
