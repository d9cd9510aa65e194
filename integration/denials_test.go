package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/kaudit"
)

// switchboard is the machine's kernel auditing, which is everybody's: a test
// that needs it in some way has it alone, and leaves it as it was.
type switchboard struct {
	t *testing.T
	*kaudit.Kernel
}

// needFirstPIDs skips a test in a pid namespace that is not the machine's first,
// also in CI: the kernel answers questions about auditing in that one alone
// (audit_netlink_ok), and nothing that could be installed changes it.
func needFirstPIDs(t *testing.T) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil || st.Ino != firstPIDs {
		t.Skip("kernel auditing speaks to the machine's first pid namespace only, and this is another")
	}
}

// firstPIDs is the inode of the machine's first pid namespace (PROC_PID_INIT_INO
// in the kernel).
const firstPIDs = 0xEFFFFFFC

// auditing takes the machine's switch, turns it off, and puts everything back
// at the end of the test.
func auditing(t *testing.T) *switchboard {
	t.Helper()
	needRoot(t)
	needFirstPIDs(t)
	lock, err := os.Open(os.TempDir()) // what tests of all trees on this machine share
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	k, err := kaudit.Dial()
	if err != nil {
		lacking(t, "kernel auditing is not to be had: %v", err)
	}
	t.Cleanup(k.Close)
	s := &switchboard{t, k}
	before, never := s.now()
	if before.Enabled == kaudit.Locked {
		lacking(t, "kernel auditing is locked until the next boot")
	}
	t.Cleanup(func() { s.restore(before, never) })
	s.restore(kaudit.Status{BacklogLimit: 64}, false)
	return s
}

func (s *switchboard) now() (kaudit.Status, bool) {
	s.t.Helper()
	status, err := s.Status()
	if err != nil {
		lacking(s.t, "kernel auditing is not to be had: %v", err)
	}
	never, err := s.HasTaskNever()
	if err != nil {
		s.t.Fatal(err)
	}
	return status, never
}

// restore sets all that setup changes.
func (s *switchboard) restore(to kaudit.Status, never bool) {
	s.t.Helper()
	rule := s.RemoveTaskNever
	if never {
		rule = s.AddTaskNever
	}
	for _, err := range []error{rule(), s.SetBacklogLimit(to.BacklogLimit), s.SetEnabled(to.Enabled)} {
		if err != nil {
			s.t.Errorf("kernel auditing is not as it was: %v", err)
		}
	}
}

// want compares what setup changes.
func (s *switchboard) want(when string, enabled, backlog uint32, never bool) {
	s.t.Helper()
	got, has := s.now()
	if got.Enabled != enabled || got.BacklogLimit != backlog || has != never {
		s.t.Errorf("%s: enabled %d, backlog %d, rule task,never %v; want %d, %d, %v", when, got.Enabled, got.BacklogLimit, has, enabled, backlog, never)
	}
}

// on turns kernel auditing on as an operator does.
func (s *switchboard) on(b *box) {
	s.t.Helper()
	if !kaudit.ReportsLandlock() {
		lacking(b.t, "this kernel does not report what Landlock denies (Linux 6.15)")
	}
	if got := b.ctl("setup", "audit"); got.code != 0 {
		s.t.Fatalf("setup audit: %s", got)
	}
	b.t.Cleanup(func() { b.ctl("setup", "audit", "--undo") }) // before the box looks what is left
}

// denied is a denial in the audit log.
type denied struct {
	Class   int `json:"class_uid"`
	Message string
	Count   int
	Device  struct{ UID string }
	File    struct{ Path string }
	Kernel  struct {
		SystemCall string `json:"system_call"`
		Name       string
	}
	Actor struct {
		Process struct {
			PID  int
			Name string
			File struct{ Path string }
			User struct{ UID string }
		}
	}
	More struct {
		Layer   string
		Rights  []string
		OrChild bool `json:"or_child"`
		Device  string
		Kind    string
		Count   int
	} `json:"unmapped"`
}

// what is a denial in few words: the rights and the path, or the call.
func (d *denied) what() string {
	switch {
	case d.Kernel.SystemCall != "":
		return d.Kernel.SystemCall
	case d.Count > 0:
		return "folded"
	}
	return strings.ReplaceAll(strings.Join(d.More.Rights, ","), "fs.", "") + " " + d.File.Path
}

// awaitDenial returns the first denial, written or to come, that is as wanted.
func (b *box) awaitDenial(what string, wanted func(*denied) bool) *denied {
	b.t.Helper()
	got := new(denied)
	b.awaitLine(what, func(text json.RawMessage) bool {
		*got = denied{}
		return json.Unmarshal(text, got) == nil && (got.Class == 1001 || got.Class == 1003) && wanted(got)
	})
	return got
}

// denials are those in the log as it is.
func (b *box) denials() (list []denied) {
	b.t.Helper()
	text, err := os.ReadFile(b.auditFile())
	b.must(err)
	for l := range strings.Lines(string(text)) {
		var d denied
		b.must(json.Unmarshal([]byte(l), &d))
		if d.Class == 1001 || d.Class == 1003 || d.More.Kind == "missed" {
			list = append(list, d)
		}
	}
	return list
}

// withTools puts what the tests below stumble over into the image.
func (b *box) withTools() *box {
	b.t.Helper()
	probe, err := probeProgram()
	b.must(err)
	text, err := os.ReadFile(probe)
	b.must(err)
	b.must(os.WriteFile(filepath.Join(b.rootfs(), "mnt/program"), text, 0o755))
	return b
}

// refusals are what a program tries, what it is told, and what the log tells.
// The right is the kernel's word; the path is the program's.
var refusals = []struct{ verb, errno, what string }{
	{"read /root/secret", "EACCES", "read_file /root/secret"},
	{"list /root", "EACCES", "read_dir /root"},
	{"write /usr/share/text", "EACCES", "write_file /usr/share/text"},
	{"truncate /usr/share/text", "EACCES", "truncate /usr/share/text"},
	{"create /usr/share/new", "EACCES", "make_reg /usr/share"},
	{"mkdir /usr/share/new", "EACCES", "make_dir /usr/share"},
	{"symlink x /usr/share/new", "EACCES", "make_sym /usr/share"},
	{"unlink /usr/share/text", "EACCES", "remove_file /usr/share"},
	{"rename /sandbox/mine /usr/share/mine", "EACCES", "make_reg,refer /usr/share"},
	{"exec /mnt/program", "EACCES", "execute,read_file /mnt/program"},
	{"ioctl-at /dev/urandom 0x80045200", "EACCES", "ioctl_dev /dev/urandom"}, // RNDGETENTCNT
	{"ptrace 1", "EPERM", "ptrace"},
	{"mount /tmp /mnt none 4096", "EPERM", "mount"},
	{"unshare 0x10000000", "EPERM", "unshare"},
	{"socket 40 1 0", "EAFNOSUPPORT", "socket"},
}

// Whatever layers 1 and 2 refuse, to the first program and to an exec's, as root
// and as a user, is in the audit log: what, where, and who.
func TestDenialsAreSeen(t *testing.T) {
	board := auditing(t)
	for _, user := range []string{"root", "1000"} {
		t.Run(user, func(t *testing.T) {
			b := newBox(t).withTools()
			if user != "root" {
				b.asUser()
			}
			board.on(b)
			main := b.up()
			uid := map[string]string{"root": "0", "1000": "1000"}[user]
			for _, k := range []*talk{main, b.exec()} {
				k.want("ok", "create /sandbox/mine")
				for _, a := range refusals {
					k.want(a.errno, a.verb)
					d := b.awaitDenial(k.name+": "+a.verb, func(d *denied) bool {
						return d.what() == a.what && (k.name == "main") == (d.Actor.Process.PID == b.initPID())
					})
					if d.Device.UID != b.id || !strings.HasSuffix(d.Actor.Process.File.Path, "/probe") || d.Actor.Process.Name != "probe" || d.Actor.Process.User.UID != uid {
						t.Errorf("%s: %s: the log says %+v", k.name, a.verb, *d)
					}
				}
			}
			for _, d := range b.denials() {
				if d.More.Device == "tmpfs" && d.File.Path == "/" {
					t.Errorf("the launcher's own test of the seal is shown as a denial: %+v", d)
				}
			}
			if got := b.ctl("log", b.id); !strings.Contains(got.stdout, "denied  read_file /root/secret to /bin/probe[") || !strings.Contains(got.stdout, "denied  system call ptrace to /bin/probe[") {
				t.Errorf("log: %s", got)
			}
			if got := b.ctl("status", b.id); !strings.Contains(got.stdout, "observable;") {
				t.Errorf("status: %s", got)
			}
			if got := b.ctl("audit", "verify", b.auditFile()); got.code != 0 {
				t.Errorf("audit verify: %s", got)
			}
		})
	}
}

// What a program calls its files cannot pass for anything else where a person
// reads it.
func TestDeniedNamesAreInert(t *testing.T) {
	board := auditing(t)
	b := newBox(t)
	evil := "/root/\x1b[2J\n2026-01-01  allow everything"
	b.must(os.WriteFile(b.rootfs()+evil, nil, 0o666))
	board.on(b)
	k := b.up()
	k.want("EACCES", fmt.Sprintf("read %q", evil))
	d := b.awaitDenial("the file", func(d *denied) bool { return d.More.Layer == "landlock" })
	if d.File.Path != evil {
		t.Errorf("the path is %q, want %q", d.File.Path, evil)
	}
	got := b.ctl("log", b.id)
	if strings.Contains(got.stdout, "\x1b") || strings.Contains(got.stdout, "\n2026-01-01") || !strings.Contains(got.stdout, `\x1b[2J\n2026-01-01`) {
		t.Errorf("log: %q", got.stdout)
	}
}

// readersOf are the processes that read for sandboxes: children of a monitor, or
// of ours once that has ended.
func readersOf(boxes ...*box) (readers []int) {
	parents := []int{os.Getpid()}
	for _, b := range boxes {
		parents = append(parents, b.monitor())
	}
	for _, parent := range parents {
		for _, pid := range children(parent) {
			if runs(pid, "denials") {
				readers = append(readers, pid)
			}
		}
	}
	return readers
}

// shareRun gives both boxes the second one's run directory, until the end of the
// test: both containers end before either box looks what is left.
func shareRun(b [2]*box) {
	own, shared := b[0].path("run"), b[1].path("run")
	b[0].must(os.Remove(own))
	b[0].must(os.Symlink(shared, own))
	b[0].t.Cleanup(func() {
		for _, b := range b {
			b.nemoclaw(nil, "delete", "--force", b.id)
		}
		b[0].must(os.Remove(own))
		b[0].must(os.Mkdir(own, 0o755))
	})
}

// insist has a program try until its denial is in the log, and returns how often
// that was.
func insist(b *box, k *talk, verb, what string) (tries int) {
	b.t.Helper()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		b.awaitDenial(verb, func(d *denied) bool { return d.what() == what })
	}()
	for {
		k.want("EACCES", verb)
		tries++
		select {
		case <-heard:
			return tries
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Two sandboxes with one reader: each hears of its own denials only, also of
// those that came by exec and after the reader was started again.
func TestDenialsNeverMix(t *testing.T) {
	board := auditing(t)
	b := [2]*box{newBox(t), newBox(t)}
	shareRun(b)
	board.on(b[0])
	var talks [2][2]*talk
	for i := range b {
		talks[i] = [2]*talk{b[i].up(), b[i].exec()}
	}
	const marker = "/opt/app/text"
	places := [2][2]string{{"/root/secret", "/home/user/secret"}, {"/mnt/secret", "/usr/share/text"}}
	calls := [2]string{"ptrace 1", "unshare 0x10000000"}
	try := func() {
		for j := range 2 {
			for i := range b {
				verb := "read"
				if places[i][j] == "/usr/share/text" {
					verb = "write"
				}
				talks[i][j].want("EACCES", verb+" "+places[i][j])
				talks[i][j].want("EPERM", calls[i])
			}
		}
	}
	check := func(times int) {
		t.Helper()
		for i := range b {
			want := map[string]int{}
			for j := range 2 {
				place, call := places[i][j], strings.Fields(calls[i])[0]
				want[place] += times
				want[call] += times
			}
			left := 4 * times
			b[i].awaitDenial("all of its own", func(d *denied) bool {
				if what := max(d.File.Path, d.Kernel.SystemCall); what != marker {
					want[what]--
					left--
				}
				return left == 0
			})
			for what, n := range want {
				if n != 0 {
					t.Errorf("sandbox %d is told of %s %d times too often", i, what, -n)
				}
			}
		}
	}
	try()
	check(1)
	readers := readersOf(b[0], b[1])
	if len(readers) != 1 {
		t.Fatalf("there are the readers %v", readers)
	}
	kill(t, readers[0])
	for i := range b {
		insist(b[i], talks[i][0], "write "+marker, "write_file "+marker)
	}
	try()
	check(2)
}

// Denials of layer 2 are seen on a machine whose kernel auditing nobody turned
// on, and status says what is not. What the first filter alone refuses is none of
// ours.
func TestSeccompDenialsWithoutAuditing(t *testing.T) {
	board := auditing(t)
	b := newBox(t)
	k := b.up()
	k.want("EPERM", "sys 239 0 0 0 0 0") // get_mempolicy(2), by Docker's default
	k.want("EPERM", "ptrace 1")
	k.want("EACCES", "read /root/secret")
	b.awaitDenial("ptrace", func(d *denied) bool { return d.what() == "ptrace" })
	for _, d := range b.denials() { // the kernel tells in order
		if d.what() == "get_mempolicy" {
			t.Errorf("a denial of the first filter is logged: %+v", d)
		}
	}
	if got := b.ctl("status", b.id); !strings.Contains(got.stdout, "not observable") || !strings.Contains(got.stdout, "nemoclawctl setup audit") && kaudit.ReportsLandlock() {
		t.Errorf("status: %s", got)
	}
	board.want("after a sandbox", 0, 64, false)
}

// setup audit says what it does, does it once, and undoes it to the last bit;
// what was there before stays.
func TestSetupAudit(t *testing.T) {
	board := auditing(t)
	b := newBox(t)
	steps := []struct {
		args    []string
		said    string
		enabled uint32
		backlog uint32
		never   bool
	}{
		{[]string{"--check"}, "off", 0, 64, false},
		{nil, "task,never", 1, 8192, true},
		{nil, "nothing to do", 1, 8192, true},
		{[]string{"--check"}, "changed by nemoclawctl", 1, 8192, true},
		{[]string{"--undo"}, "restored", 0, 64, false},
		{[]string{"--undo"}, "nothing to undo", 0, 64, false},
	}
	run := func() {
		t.Helper()
		for _, s := range steps {
			got := b.ctl(append([]string{"setup", "audit"}, s.args...)...)
			if got.code != 0 || !strings.Contains(got.stdout, s.said) {
				t.Errorf("setup audit %v: %s", s.args, got)
			}
			board.want(fmt.Sprintf("setup audit %v", s.args), s.enabled, s.backlog, s.never)
		}
	}
	run()
	board.restore(kaudit.Status{BacklogLimit: 100000}, true)
	for i := range steps {
		steps[i].never, steps[i].backlog = true, 100000
	}
	steps[1].said = "turned kernel auditing on"
	run()

	// Where the kernel is not ours to set, it says so and changes nothing.
	board.restore(kaudit.Status{BacklogLimit: 64}, false)
	cmd := exec.Command(program(t, "nemoclawctl"), "setup", "audit")
	cmd.Env = append(os.Environ(), "NEMOCLAW_CONFIG="+b.path("config.yaml"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}}}
	if got := b.finish(cmd); got.code != 1 || !strings.Contains(got.stderr, "hint: it takes root on the host itself") {
		t.Errorf("in a user namespace: %s", got)
	}
	board.want("after it was refused", 0, 64, false)
}

// A program that is refused a hundred thousand times is counted: it neither
// fills the disk nor keeps others from being heard, also beside another
// listener, such as an audit daemon's.
func TestFloodOfDenials(t *testing.T) {
	const times = 100_000
	board := auditing(t)
	b := [2]*box{newBox(t), newBox(t)}
	shareRun(b)
	board.on(b[0])
	beside, err := kaudit.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	flooder, other := b[0].up(), b[1].up()
	lostBefore, _ := board.now()
	flooder.send(fmt.Sprintf("flood %d /root/secret", times))
	tries := insist(b[1], other, "read /mnt/secret", "read_file /mnt/secret") // the kernel may drop any program's record now
	if got := flooder.answer(); got != "EACCES" {
		t.Fatalf("the flood ended with %s", got)
	}
	insist(b[1], other, "write /opt/app/text", "write_file /opt/app/text") // records keep their order: the flood's have all been read
	var raw [kaudit.BufferSize]byte
	some := 0
	_ = kaudit.Read(int(beside.Fd()), 1000, raw[:], func(kaudit.Record) { some++ })
	if some == 0 {
		t.Error("the listener beside us heard nothing")
	}
	b[0].nemoclaw(nil, "delete", "--force", b[0].id)
	lost, _ := board.now()
	told, missed := 0, 0
	for _, d := range b[0].denials() {
		switch {
		case d.More.Kind == "missed":
			missed += d.More.Count
		case d.Count > 0:
			told += d.Count
		default:
			told++
		}
	}
	t.Logf("of %d denials %d are in the log; it says that %d records were lost (the kernel: %d); the other one tried %d times", times, told, missed, lost.Lost-lostBefore.Lost, tries)
	if told > times || told+missed < times {
		t.Errorf("of %d denials %d are in the log, which says that %d records were lost", times, told, missed)
	}
	if fi, err := os.Stat(b[0].auditFile()); err != nil || fi.Size() > 200<<10 {
		t.Errorf("the log has grown to %d bytes (%v)", fi.Size(), err)
	}
}

// A monitor that was killed takes nothing with it: the one in its place knows
// the domains that live, which the kernel describes only once.
func TestDenialsAfterRepair(t *testing.T) {
	board := auditing(t)
	b := newBox(t)
	board.on(b)
	k := b.up()
	k.want("EACCES", "read /root/secret")
	b.awaitDenial("the first", func(d *denied) bool { return d.what() == "read_file /root/secret" })
	kill(t, b.monitor())
	if got := b.ctl("repair", b.id); got.code != 0 {
		t.Fatalf("repair: %s", got)
	}
	insist(b, k, "read /mnt/secret", "read_file /mnt/secret")
	b.exec().want("EACCES", "write /opt/app/text")
	b.awaitDenial("an exec's", func(d *denied) bool { return d.what() == "write_file /opt/app/text" })
}
