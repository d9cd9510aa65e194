package denials

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/egress/kaudit"
)

// kernel feeds a reader with records as the kernel writes them. Two sandboxes
// are known: web, whose first program is process 100, and db with 200.
type kernel struct {
	t *testing.T
	*Reader
	serial  int
	cgroups map[int]string // by pid; a pid that is missing has ended
	web, db *sandbox
}

func newKernel(t *testing.T) *kernel {
	t.Helper()
	k := &kernel{t: t, Reader: &Reader{sandboxes: map[string]*sandbox{}, domains: map[string]domain{}, recent: map[int]string{}}}
	k.Cgroups = func(pid int) (string, error) {
		if text, ok := k.cgroups[pid]; ok {
			return text, nil
		}
		return "", errors.New("it has ended")
	}
	k.cgroups = map[int]string{100: "0::/web\n", 101: "0::/web/below\n", 200: "0::/db\n", 300: "0::/system\n"}
	enter := func(name string, pid int) *sandbox {
		s := newSandbox(&k.mu, nil, control.Watch{Launcher: name, InitPID: pid, Cgroups: []string{"0::/" + name}})
		k.sandboxes[name] = s
		return s
	}
	k.web, k.db = enter("web", 100), enter("db", 200)
	return k
}

// says is one record; more on the same event begin with "+".
func (k *kernel) says(typ uint16, text string) {
	k.t.Helper()
	rest, same := strings.CutPrefix(text, "+")
	if !same {
		k.serial++
	}
	r, err := kaudit.Parse(typ, fmt.Appendf(nil, "audit(%d.000:%d): %s", time.Now().Unix(), k.serial, rest))
	if err != nil {
		k.t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.record(r)
}

func (k *kernel) access(domain, right, path string) {
	k.says(kaudit.LandlockAccess, fmt.Sprintf(`domain=%s blockers=%s path="%s" dev="vda" ino=1`, domain, right, path))
}

// seals is what the kernel says when a launcher of the given name is sealed and
// its canary is denied.
func (k *kernel) seals(domain, launcher string, pid int) {
	k.says(kaudit.LandlockAccess, "domain="+domain+` blockers=fs.read_dir path="/" dev="tmpfs" ino=1`)
	k.describes(domain, launcher, pid)
}

func (k *kernel) describes(domain, launcher string, pid int) {
	exe := strings.ToUpper(hex.EncodeToString([]byte("/memfd:" + launcher + " (deleted)")))
	k.says(kaudit.LandlockDomain, fmt.Sprintf(`domain=%s status=allocated mode=enforcing pid=%d uid=0 exe=%s comm="7"`, domain, pid, exe))
}

func (k *kernel) calls(pid, number int) {
	k.says(kaudit.Seccomp, fmt.Sprintf(`uid=0 pid=%d comm="x" exe="/x" sig=0 arch=c000003e syscall=%d compat=0 ip=0x1 code=0x50000`, pid, number))
}

// heard is all that a sandbox is to be told, in words.
func heard(s *sandbox) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	told := s.told
	var words []string
	for _, d := range told.Denials {
		word := strings.Join(d.Rights, ",") + d.Call + " " + d.Path + fmt.Sprintf(" %d", d.PID)
		if d.OrChild {
			word += "+"
		}
		words = append(words, strings.ReplaceAll(word, "  ", " "))
	}
	for _, layer := range slices.Sorted(maps.Keys(told.Folded)) {
		words = append(words, fmt.Sprintf("%d of %s", told.Folded[layer], layer))
	}
	if told.Unknown > 0 {
		words = append(words, fmt.Sprintf("%d unknown", told.Unknown))
	}
	return strings.Join(words, "; ")
}

// What the kernel says, and what either sandbox hears of it.
func TestWhoseDenialsAre(t *testing.T) {
	const ptrace, clone3 = 101, 435
	tests := []struct {
		name    string
		says    func(k *kernel)
		web, db string
	}{
		{"the canary is nobody's concern", func(k *kernel) { k.seals("a1", "web", 100) }, "", ""},
		{"a denial goes to the sandbox of its domain", func(k *kernel) {
			k.seals("a1", "web", 100)
			k.seals("b1", "db", 200)
			k.access("a1", "fs.read_file", "/root/secret")
			k.access("b1", "fs.write_file", "/etc/passwd")
		}, "fs.read_file /root/secret 100+", "fs.write_file /etc/passwd 200+"},
		{"an exec has a domain of its own", func(k *kernel) {
			k.seals("a1", "web", 100)
			k.seals("a2", "web", 101)
			k.access("a2", "fs.execute", "/mnt/x")
		}, "fs.execute /mnt/x 101+", ""},
		{"auditing was turned on after the seal: the first denial is a denial", func(k *kernel) {
			k.access("a1", "fs.read_dir", "/")
			k.describes("a1", "web", 100)
		}, "fs.read_dir / 100+", ""},
		{"the domain of another program", func(k *kernel) {
			k.access("c1", "fs.read_file", "/x")
			k.says(kaudit.LandlockDomain, `domain=c1 status=allocated mode=enforcing pid=300 uid=0 exe="/usr/bin/other" comm="other"`)
			k.access("c1", "fs.read_file", "/y")
		}, "", ""},
		{"a program outside that bears a launcher's name", func(k *kernel) {
			k.seals("c1", "web", 300)
			k.access("c1", "fs.read_file", "/forged")
		}, "", ""},
		{"a launcher's name in a path", func(k *kernel) {
			k.access("c1", "fs.read_file", "/x")
			k.says(kaudit.LandlockDomain, `domain=c1 status=allocated mode=enforcing pid=300 uid=0 exe="/memfd:db/web" comm="other"`)
		}, "", ""},
		{"a domain that was described before anybody heard", func(k *kernel) { k.access("d1", "fs.read_file", "/x") }, "1 unknown", "1 unknown"},
		{"the same, with the process behind it", func(k *kernel) {
			k.access("d1", "fs.read_file", "/x")
			k.says(kaudit.Syscall, `+arch=c000003e syscall=257 success=no exit=-13 ppid=1 pid=200 uid=0 comm="cat" exe="/bin/cat"`)
		}, "", "fs.read_file /x 200"},
		{"the process behind a denial", func(k *kernel) {
			k.seals("a1", "web", 100)
			k.says(kaudit.Syscall, `+arch=c000003e syscall=257 success=no exit=-13 ppid=1 pid=100 uid=0 comm="7" exe="/memfd"`)
			k.events = true
			k.access("a1", "fs.read_file", "/x")
			k.says(kaudit.Syscall, `+arch=c000003e syscall=257 success=no exit=-13 ppid=1 pid=101 uid=0 comm="cat" exe="/bin/cat"`)
		}, "fs.read_file /x 101", ""},
		{"a domain that has ended is forgotten", func(k *kernel) {
			k.seals("a1", "web", 100)
			k.says(kaudit.LandlockDomain, `domain=a1 status=deallocated denials=1`)
			k.access("a1", "fs.read_file", "/x")
		}, "1 unknown", "1 unknown"},
		{"a call of a process in a sandbox", func(k *kernel) { k.calls(200, ptrace) }, "", "ptrace 200"},
		{"a call of a process in a cgroup below", func(k *kernel) { k.calls(101, ptrace) }, "ptrace 101", ""},
		{"a call of a process of the host", func(k *kernel) { k.calls(300, ptrace) }, "", ""},
		{"a call of the first process, which has ended", func(k *kernel) {
			delete(k.cgroups, 100)
			k.calls(100, ptrace)
		}, "ptrace 100", ""},
		{"a call of the first process of an exec, which has ended", func(k *kernel) {
			k.seals("a2", "web", 102)
			k.calls(102, ptrace)
		}, "ptrace 102", ""},
		{"a call of another process that has ended", func(k *kernel) { k.calls(103, ptrace) }, "1 unknown", "1 unknown"},
		{"a thread is started", func(k *kernel) { k.calls(100, clone3) }, "", ""},
		{"a call that the table does not have", func(k *kernel) { k.calls(100, 99999) }, "99999 of architecture c000003e 100", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKernel(t)
				test.says(k)
				<-time.After(2 * held) // of the bubble's clock
				synctest.Wait()
				if got := heard(k.web); got != test.web {
					t.Errorf("web hears %q, want %q", got, test.web)
				}
				if got := heard(k.db); got != test.db {
					t.Errorf("db hears %q, want %q", got, test.db)
				}
			})
		})
	}
}

// A flood in one sandbox is counted, and does not touch the other.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKernel(t)
		k.seals("a1", "web", 100)
		k.seals("b1", "db", 200)
		for range 1000 {
			k.access("a1", "fs.read_file", "/x")
		}
		k.access("b1", "fs.read_file", "/y")
		if one, more := len(k.web.told.Denials), k.web.told.Folded[control.LayerLandlock]; one != burst || more != 1000-burst {
			t.Errorf("%d denials one by one and %d counted, want %d and %d", one, more, burst, 1000-burst)
		}
		if now, _ := k.web.take(); len(now.Denials) != burst || len(now.Folded) != 0 {
			t.Errorf("told at once are %d denials and the counts %v", len(now.Denials), now.Folded)
		}
		if got := heard(k.db); got != "fs.read_file /y 200+" {
			t.Errorf("db hears %q", got)
		}
		// The count comes soon, and then less and less often.
		var told []time.Duration
		for begin := time.Now(); time.Since(begin) < 10*time.Minute; <-time.After(50 * time.Millisecond) {
			k.access("a1", "fs.read_file", "/x")
			if now, _ := k.web.take(); len(now.Folded) > 0 {
				told = append(told, time.Since(begin).Round(100*time.Millisecond))
			}
		}
		if told[0] > time.Second || len(told) > 20 {
			t.Errorf("counts are told after %v", told)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		k.web.end()
	})
}

func TestCompare(t *testing.T) {
	lines := []string{"4:memory:/a/web", "0::/a/web"}
	tests := []struct {
		text string
		want kinship
	}{
		{"4:memory:/a/web\n0::/a/web\n", inside},
		{"4:memory:/a/web/x\n1:cpu:/\n0::/a/web/x\n", inside},
		{"4:memory:/\n0::/a/web\n", inside}, // it has ended and was not waited for
		{"4:memory:/a/website\n0::/a/web\n", stranger},
		{"4:memory:/a/web\n0::/a/other\n", stranger},
		{"4:memory:/a\n0::/a\n", stranger},
		{"4:memory:/\n0::/\n", unclear},
		{"", unclear},
		{"nonsense", unclear},
	}
	for _, test := range tests {
		if got := compare(lines, test.text); got != test.want {
			t.Errorf("%q is %v, want %v", test.text, got, test.want)
		}
	}
	if got := compare(nil, tests[0].text); got != unclear {
		t.Errorf("a sandbox without cgroups is %v", got)
	}
}
