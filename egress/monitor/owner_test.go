package monitor

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

// The owner of a connection is the process that was seen to connect, whoever
// holds the socket later, and also when it has ended. Where nobody saw it, who
// holds the socket is said, and whether it could be another.
func TestOwner(t *testing.T) {
	needFirstPIDs(t)
	s := newSandbox(t)
	group := newTestCgroup(t)
	seen, unseen := newTestOwners(t, s), newTestOwners(t, s)
	s.must(seen.load())
	s.must(seen.watch(cgroups, group.start(t, s, "init").Process.Pid))
	to := listenPort(t, s)
	self, err := os.Executable()
	s.must(err)
	for _, c := range []struct {
		name    string
		owners  *owners
		program string
		ended   bool
		find    string // what is unsure of it for the log
		ask     string // and for a decision; "-": it is unknown
	}{
		{"seen", seen, "connect", false, "", ""},
		{"seen, and held by another too", seen, "share", false, "", ""},
		{"seen, and ended", seen, "connect", true, "it has ended", "it has ended"},
		{"not seen", unseen, "connect", false, "it holds the socket; others may too", ""},
		{"not seen, and held by another too", unseen, "share", false, "it holds the socket; others may too", "several processes hold the socket"},
		{"not seen, and ended", unseen, "connect", true, "-", "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := group.start(t, s, c.program, "127.0.0.1:"+to)
			src, dst := netip.MustParseAddrPort(program.said), netip.MustParseAddrPort("127.0.0.1:"+to)
			if c.ended {
				program.end()
			}
			patient := time.Now().Add(patience)
			asked, gone := c.owners.lookup(src, dst, true, patient)
			if gone != c.ended {
				t.Errorf("its socket is gone: %t", gone)
			}
			for i, p := range []*control.Process{c.owners.find(src, dst, patient), asked} {
				switch what := []string{c.find, c.ask}[i]; {
				case what == "-":
					if p != nil {
						t.Errorf("it belongs to %+v", p)
					}
				case p == nil:
					t.Errorf("it belongs to nobody, want %q", what)
				case p.Unsure != what:
					t.Errorf("it belongs to %+v, want it to be %q", p, what)
				case what == "" && (p.PID != program.Process.Pid || p.Exe != self):
					t.Errorf("it belongs to %+v", p)
				case p.PID == program.Process.Pid && len(p.Ancestors) != 0:
					t.Errorf("this test is no ancestor inside the sandbox: %v", p.Ancestors)
				}
			}
		})
	}
	if p, gone := seen.ask(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:"+to)); p != nil || !gone {
		t.Errorf("a connection that does not exist belongs to %+v", p)
	}
}

// A process that executes another program is that program from then on.
func TestOwnerIsReadAnew(t *testing.T) {
	s := newSandbox(t)
	o := newTestOwners(t, s)
	o.known[4711] = known{name: "sh", at: time.Now(), process: &control.Process{PID: 4711, Name: "sh"}}
	as := func(name string) caller {
		c := caller{Process: 4711, At: 1}
		copy(c.Name[:], name)
		return c
	}
	if p := o.called(as("sh"), false); p.Unsure != "" {
		t.Errorf("a process that was read a moment ago was read again: %+v", p)
	}
	for _, p := range []*control.Process{o.called(as("curl"), false), o.called(as("sh"), true)} {
		if p.Unsure != "it has ended" && p.Exe == "" {
			t.Errorf("it is taken as known: %+v", p)
		}
	}
}

// A record has the process whose connection it is, from the first line to the
// last, and the monitor found out by itself.
func TestRecordsHaveOwners(t *testing.T) {
	needFirstPIDs(t)
	s := newSandbox(t)
	group := newTestCgroup(t)
	m := &Monitor{owners: newTestOwners(t, s), tally: newTally()}
	s.must(m.owners.load())
	s.must(m.owners.watch(cgroups, group.start(t, s, "init").Process.Pid))
	to := listenPort(t, s)
	program := group.start(t, s, "connect", "127.0.0.1:"+to)
	r := control.Record{Request: "r-1", Proto: "tcp", Src: netip.MustParseAddrPort(program.said), Dst: netip.MustParseAddrPort("127.0.0.1:" + to)}
	for _, c := range []struct {
		verdict control.Verdict
		request string
		known   bool
	}{
		{control.Allow, "r-1", true},
		{control.End, "r-1", true},    // by its number: the connection is gone
		{control.End, "r-1", false},   // that has ended
		{control.Refuse, "r-2", true}, // seen, although its process has ended
		{control.Cut, "r-3", false},   // never begun
	} {
		r.Verdict, r.Request, r.Process = c.verdict, c.request, nil
		list := []control.Record{r}
		m.attribute(list)
		m.count(list, true)
		if p := list[0].Process; (p != nil) != c.known || p != nil && p.PID != program.Process.Pid {
			t.Errorf("%s of %s belongs to %+v", c.verdict, c.request, p)
		}
		program.end()
	}
}

// Whose a datagram is, is known as long as its socket lives; afterwards who sent
// to that address last is said, with a doubt. A question to a name server has no
// destination that would be known.
func TestSender(t *testing.T) {
	needFirstPIDs(t)
	s := newSandbox(t)
	group := newTestCgroup(t)
	seen, unseen := newTestOwners(t, s), newTestOwners(t, s)
	s.must(seen.load())
	s.must(seen.watch(cgroups, group.start(t, s, "init").Process.Pid))
	for _, c := range []struct {
		name    string
		owners  *owners
		program string
		to      string
		dst     string // as the gateway knows it; empty: not
		ended   bool
		unsure  string // "-": it is unknown
	}{
		{"connected", seen, "send", "127.0.0.1:9001", "127.0.0.1:9001", false, ""},
		{"not connected", seen, "sendto", "127.0.0.1:9002", "127.0.0.1:9002", false, ""},
		{"IPv6", seen, "sendto", "[::1]:9003", "[::1]:9003", false, ""},
		{"over a socket of IPv6", seen, "sendto6", "127.0.0.1:9004", "127.0.0.1:9004", false, ""},
		{"a question", seen, "send", "127.0.0.1:53", "", false, ""},
		{"a question, not connected", seen, "sendto", "127.0.0.1:53", "", false, ""},
		{"connected, and ended", seen, "send", "127.0.0.1:9005", "127.0.0.1:9005", true, "it has ended"},
		{"not connected, and ended", seen, "sendto", "[::1]:9006", "[::1]:9006", true, "it has ended"},
		{"a question, and ended", seen, "send", "127.0.0.1:53", "", true, "-"},
		{"closed", seen, "sendclose", "127.0.0.1:9007", "127.0.0.1:9007", false, "it was the last to send there; the socket is closed"},
		{"elsewhere", seen, "send", "127.0.0.1:9008", "127.0.0.1:9009", false, "-"},
		{"not seen", unseen, "send", "127.0.0.1:9010", "127.0.0.1:9010", false, "it holds the socket; others may too"},
		{"not seen, and ended", unseen, "send", "127.0.0.1:9011", "127.0.0.1:9011", true, "-"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := group.start(t, s, c.program, c.to)
			if c.ended {
				program.end()
			}
			var dst netip.AddrPort
			if c.dst != "" {
				dst = netip.MustParseAddrPort(c.dst)
			}
			p := c.owners.sender(netip.MustParseAddrPort(program.said), dst, time.Now().Add(patience))
			switch {
			case c.unsure == "-":
				if p != nil {
					t.Errorf("it is %+v's", p)
				}
			case p == nil:
				t.Error("it is nobody's")
			case p.Unsure != c.unsure || p.PID != program.Process.Pid:
				t.Errorf("it is %+v's, want %d's and %q", p, program.Process.Pid, c.unsure)
			}
		})
	}

	// Two programs on one port: it may be either's.
	first := group.start(t, s, "bind", "127.0.0.1:9020")
	group.start(t, s, "bind", "0.0.0.0:9020")
	p := seen.sender(netip.MustParseAddrPort("127.0.0.1:9020"), netip.MustParseAddrPort("127.0.0.1:9021"), time.Now().Add(patience))
	if p == nil || p.Unsure != "several processes have sockets with its port" {
		t.Errorf("what may be the datagram of two is %+v's; one is %d", p, first.Process.Pid)
	}
}

const cgroups = "/sys/fs/cgroup"

func newTestOwners(t *testing.T, s *sandbox) *owners {
	t.Helper()
	o, err := newOwners(s.inner)
	s.must(err)
	t.Cleanup(o.close)
	return o
}

// testCgroup is a container's, of version 2.
type testCgroup struct {
	dir string
	fd  *os.File
}

func newTestCgroup(t *testing.T) testCgroup {
	t.Helper()
	mounts := slices.DeleteFunc(hierarchies(cgroups), func(dir string) bool { return !isCgroup2(dir) })
	if len(mounts) == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("cgroups of version 2 are needed")
		}
		t.Skip("cgroups of version 2 are needed")
	}
	dir := filepath.Join(mounts[0], fmt.Sprintf("nemoclaw-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		fd.Close()
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return testCgroup{dir, fd}
}

// testProgram is a process of the sandbox.
type testProgram struct {
	*exec.Cmd
	said string
	end  func()
}

// start starts this binary in the cgroup and in the sandbox's namespace.
func (g testCgroup) start(t *testing.T, s *sandbox, args ...string) testProgram {
	t.Helper()
	p := testProgram{Cmd: exec.Command("/proc/self/exe", args...)}
	p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.fd.Fd())}
	stdin, err := p.StdinPipe()
	s.must(err)
	stdout, err := p.StdoutPipe()
	s.must(err)
	s.must(startIn(s.inner, p.Cmd))
	p.end = func() {
		stdin.Close()
		io.Copy(io.Discard, stdout)
		p.Wait()
	}
	t.Cleanup(p.end)
	if len(args) > 1 {
		_, err = fmt.Fscanln(stdout, &p.said)
		s.must(err)
	}
	return p
}

// listenPort is the port of the first of the sandbox's listeners.
func listenPort(t *testing.T, s *sandbox) string {
	t.Helper()
	files, err := listenIn(s.inner)
	s.must(err)
	t.Cleanup(func() { control.CloseAll(files) })
	sa, err := unix.Getsockname(int(files[0].Fd()))
	s.must(err)
	return strconv.Itoa(sa.(*unix.SockaddrInet4).Port)
}

// needFirstPIDs skips a test in a pid namespace that is not the machine's first,
// also in CI: connections are not watched there, and nothing that could be
// installed changes it.
func needFirstPIDs(t *testing.T) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil || st.Ino != firstPIDs {
		t.Skip("connections are watched in the machine's first pid namespace only, and this is another")
	}
}
