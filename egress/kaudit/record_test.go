package kaudit

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"
)

// Records as Linux 6.18 wrote them.
func TestParse(t *testing.T) {
	tests := []struct {
		name   string
		typ    uint16
		text   string
		fields map[string]string
	}{
		{"an access", LandlockAccess, `audit(1795338611.341:41992): domain=179f80b21 blockers=fs.read_file path="/home/node/tok" dev="vda" ino=11102001`,
			map[string]string{"domain": "179f80b21", "blockers": "fs.read_file", "path": "/home/node/tok", "dev": "vda", "ino": "11102001", "pid": ""}},
		{"a path with a space", LandlockAccess, `audit(1795338611.341:1): domain=1 blockers=fs.make_reg,fs.refer path=2F612062 dev="vda" ino=1`,
			map[string]string{"path": "/a b", "blockers": "fs.make_reg,fs.refer", "dev": "vda"}},
		{"the beginning of a domain", LandlockDomain, `audit(1795338611.337:41991): domain=179f80b21 status=allocated mode=enforcing pid=23918 uid=1000 exe=2F6D656D66643A6E656D6F636C61773A65326539202864656C6574656429 comm="7"`,
			map[string]string{"status": "allocated", "pid": "23918", "exe": "/memfd:nemoclaw:e2e9 (deleted)", "comm": "7"}},
		{"the end of a domain", LandlockDomain, `audit(1795338611.397:41995): domain=179f80b21 status=deallocated denials=4`,
			map[string]string{"status": "deallocated", "denials": "4", "exe": ""}},
		{"a call", Seccomp, `audit(1795338611.341:2): auid=4294967295 uid=0 gid=0 ses=4294967295 subj=docker-default (enforce) pid=22177 comm="python3" exe="/usr/bin/python3" sig=0 arch=c000003e syscall=110 compat=0 ip=0x7f5d3951f829 code=0x50000` + "\x00",
			map[string]string{"pid": "22177", "comm": "python3", "exe": "/usr/bin/python3", "arch": "c000003e", "syscall": "110", "code": "0x50000"}},
		{"a path that looks like fields", LandlockAccess, `audit(1.000:3): domain=2 blockers=fs.read_file path="/x,domain=1" dev="vda" ino=1`,
			map[string]string{"domain": "2", "path": "/x,domain=1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, err := Parse(test.typ, []byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range test.fields {
				if got := r.Field(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
	r, err := Parse(Seccomp, []byte("audit(1795338611.341:41992): pid=7"))
	if err != nil || r.Serial != 41992 || !r.Time.Equal(time.UnixMilli(1795338611341)) || r.Int("pid") != 7 || r.Int("uid") != -1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"", "audit", "audit(", "audit(1.2:3)", "audit(1:3): a=1", "audit(1.2): a=1", "audit(a.000:3): a=1", "audit(1.000:b): a=1",
		"audit(-1.000:3): a=1", "audit(1.9999:3): a=1", " audit(1.000:3): a=1"} {
		if r, err := Parse(Seccomp, []byte(text)); err == nil {
			t.Errorf("%q is %+v", text, r)
		}
	}
}

// untrusted writes text as audit_log_untrustedstring does.
func untrusted(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return r == '"' || r < 0x21 || r > 0x7e }) {
		return strings.ToUpper(hex.EncodeToString([]byte(text)))
	}
	return `"` + text + `"`
}

// The law: whatever names a program gives to itself and to its files, every
// field is read as the kernel wrote it.
func FuzzRecord(f *testing.F) {
	f.Add("cat", "/root/secret", uint64(7))
	f.Add("a b", "/x\" domain=1 pid=1", uint64(0))
	f.Add("\x00\xff", "/deadbeef", uint64(1))
	f.Add("=", "=", uint64(1))
	f.Fuzz(func(t *testing.T, comm, path string, id uint64) {
		comm, path = strings.ReplaceAll(comm, "\x00", ""), strings.ReplaceAll(path, "\x00", "") // C strings
		domain := fmt.Sprintf("%x", id)
		text := fmt.Sprintf("audit(1795338611.341:%d): domain=%s blockers=fs.read_file path=%s dev=\"vda\" comm=%s exe=%s pid=42 syscall=1",
			id, domain, untrusted(path), untrusted(comm), untrusted(path))
		r, err := Parse(LandlockAccess, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"domain": domain, "blockers": "fs.read_file", "path": path, "dev": "vda", "comm": comm, "exe": path, "pid": "42", "syscall": "1"} {
			if got := r.Field(name); got != want {
				t.Errorf("%s is %q, want %q, in %q", name, got, want, text)
			}
		}
		if r.Serial != id {
			t.Errorf("the serial is %d, want %d", r.Serial, id)
		}
		// Whatever else it gets, it neither hangs nor breaks.
		if r, err := Parse(Seccomp, []byte(path)); err == nil {
			r.Field("pid")
		}
		Record{text: path}.Field(comm)
	})
}
