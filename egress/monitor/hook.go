package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// maxSeen is how many connections the hook remembers; it forgets those it saw
// longest ago.
const maxSeen = 4096

// hook sees the sandbox's processes call connect(2), or send a datagram to an
// address, whatever becomes of them afterwards: a BPF program in their cgroups
// writes down for each socket who did (BPF_CGROUP_INET4_CONNECT and 6, Linux
// 4.17; BPF_CGROUP_UDP4_SENDMSG and 6, Linux 4.18), and for datagrams where to.
// It decides nothing and lets everything pass.
type hook struct {
	seen     *ebpf.Map // from a socket's cookie to caller
	sent     *ebpf.Map // from the destination of datagrams to caller, the latest
	programs []*ebpf.Program
	links    map[int][]link.Link // by the container's first process
}

// caller is who called connect(2) or sendmsg(2), as the program lays it out.
type caller struct {
	Thread  uint32 // the kernel's pid
	Process uint32 // the kernel's tgid
	UID     uint32
	GID     uint32
	At      uint64 // nanoseconds since boot
	Name    [16]byte
}

// Offsets below the frame pointer: the keys, and the value above them.
const (
	callerSize  = 40
	callerAt    = -callerSize
	cookieAt    = callerAt - 8
	destination = 16 + 4 // bytes: an address as IPv6 has it, and the port
	sentAt      = cookieAt - destination - 4
)

// Offsets in the program's argument: struct bpf_sock_addr of linux/bpf.h.
const (
	argIP4   = 4
	argIP6   = 8
	argPort  = 24
	argProto = 36
)

// hooked are the calls that are seen, and whether their address is of IPv6.
var hooked = []struct {
	at ebpf.AttachType
	v6 bool
}{
	{ebpf.AttachCGroupInet4Connect, false}, {ebpf.AttachCGroupInet6Connect, true},
	{ebpf.AttachCGroupUDP4Sendmsg, false}, {ebpf.AttachCGroupUDP6Sendmsg, true},
}

// newHook loads the program. It sees nothing before it is attached.
func newHook() (*hook, error) {
	h := &hook{links: map[int][]link.Link{}}
	err := h.load()
	if err != nil {
		h.close()
		return nil, fmt.Errorf("cannot watch connections being made: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return h, nil
}

// firstPIDs is the inode of the machine's first pid namespace (PROC_PID_INIT_INO
// in the kernel).
const firstPIDs = 0xEFFFFFFC

func (h *hook) load() (err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil || st.Ino != firstPIDs {
		// What the program is told are numbers of the first namespace: in
		// another they are those of other processes.
		return errors.New("the gateway runs in a pid namespace of its own")
	}
	h.seen, err = ebpf.NewMap(&ebpf.MapSpec{Name: "nemoclaw_seen", Type: ebpf.LRUHash, KeySize: 8, ValueSize: callerSize, MaxEntries: maxSeen})
	if err != nil {
		return err
	}
	h.sent, err = ebpf.NewMap(&ebpf.MapSpec{Name: "nemoclaw_sent", Type: ebpf.LRUHash, KeySize: destination, ValueSize: callerSize, MaxEntries: maxSeen})
	if err != nil {
		return err
	}
	for _, call := range hooked {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "nemoclaw_seen", Type: ebpf.CGroupSockAddr, AttachType: call.at, License: "GPL", Instructions: h.writeDown(call.v6)})
		if err != nil {
			return err
		}
		h.programs = append(h.programs, p)
	}
	return nil
}

// writeDown is the program (bpf-helpers(7)): seen[cookie] = caller, and for UDP
// sent[destination] = caller.
func (h *hook) writeDown(v6 bool) asm.Instructions {
	program := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // the argument, which is also the helper's
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(asm.RFP, cookieAt, asm.R0, asm.DWord),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, callerAt, asm.R0, asm.DWord),
		asm.FnGetCurrentUidGid.Call(),
		asm.StoreMem(asm.RFP, callerAt+8, asm.R0, asm.DWord),
		asm.FnKtimeGetBootNs.Call(),
		asm.StoreMem(asm.RFP, callerAt+16, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, callerAt+24),
		asm.Mov.Imm(asm.R2, 16),
		asm.FnGetCurrentComm.Call(),
	}
	program = append(program, update(h.seen, cookieAt)...)
	program = append(program,
		asm.LoadMem(asm.R1, asm.R6, argProto, asm.Word),
		asm.JNE.Imm(asm.R1, unix.IPPROTO_UDP, "go on"),
	)
	if v6 {
		for word := range int16(4) {
			program = append(program,
				asm.LoadMem(asm.R1, asm.R6, argIP6+4*word, asm.Word),
				asm.StoreMem(asm.RFP, sentAt+4*word, asm.R1, asm.Word),
			)
		}
	} else { // RFC 4291, 2.5.5.2
		program = append(program,
			asm.StoreImm(asm.RFP, sentAt, 0, asm.Word),
			asm.StoreImm(asm.RFP, sentAt+4, 0, asm.Word),
			asm.StoreImm(asm.RFP, sentAt+8, 0, asm.Half),
			asm.StoreImm(asm.RFP, sentAt+10, -1, asm.Half),
			asm.LoadMem(asm.R1, asm.R6, argIP4, asm.Word),
			asm.StoreMem(asm.RFP, sentAt+12, asm.R1, asm.Word),
		)
	}
	program = append(program,
		asm.LoadMem(asm.R1, asm.R6, argPort, asm.Word),
		asm.StoreMem(asm.RFP, sentAt+16, asm.R1, asm.Word),
	)
	program = append(program, update(h.sent, sentAt)...)
	return append(program,
		asm.Mov.Imm(asm.R0, 1).WithSymbol("go on"),
		asm.Return(),
	)
}

// update writes the caller into a map, by the key at an offset.
func update(m *ebpf.Map, keyAt int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyAt),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, callerAt),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
	}
}

// attach has the program see the connections of a process's cgroup, and of
// those below it. root is where cgroups are mounted.
func (h *hook) attach(root string, pid int) error {
	dir, err := cgroup2Of(root, pid)
	if err != nil {
		return fmt.Errorf("cannot watch connections being made: %w", err)
	}
	for i, p := range h.programs {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: hooked[i].at, Program: p})
		if err != nil {
			return fmt.Errorf("cannot watch connections being made: %w", err)
		}
		h.links[pid] = append(h.links[pid], l)
	}
	return nil
}

// detach ends what attach began.
func (h *hook) detach(pid int) {
	for _, l := range h.links[pid] {
		l.Close()
	}
	delete(h.links, pid)
}

// cgroup2Of returns the directory of a process's cgroup in the hierarchy of
// version 2 (cgroups(7)). That at the top is everybody's, and no answer.
func cgroup2Of(root string, pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok || path == "/" || strings.HasPrefix(path, "/..") {
			continue
		}
		for _, mount := range hierarchies(root) {
			if dir := filepath.Join(mount, path); isCgroup2(mount) && isCgroup2(dir) {
				return dir, nil
			}
		}
	}
	return "", errors.New("the container has no cgroup of version 2 to itself")
}

// of returns who connected a socket.
func (h *hook) of(cookie uint64) (c caller, ok bool) {
	if h == nil {
		return c, false
	}
	return c, h.seen.Lookup(&cookie, &c) == nil
}

// sender returns who sent a datagram to an address last, or connected to it for
// that.
func (h *hook) sender(to netip.AddrPort) (c caller, ok bool) {
	if h == nil || !to.IsValid() {
		return c, false
	}
	var key [destination]byte
	ip := to.Addr().As16()
	copy(key[:], ip[:])
	binary.BigEndian.PutUint16(key[16:], to.Port())
	return c, h.sent.Lookup(&key, &c) == nil
}

func (h *hook) close() {
	if h == nil {
		return
	}
	for pid := range h.links {
		h.detach(pid)
	}
	for _, p := range h.programs {
		p.Close()
	}
	for _, m := range []*ebpf.Map{h.seen, h.sent} {
		if m != nil {
			m.Close()
		}
	}
}

func (c caller) name() string { return unix.ByteSliceToString(c.Name[:]) }
