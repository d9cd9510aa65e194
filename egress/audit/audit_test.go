package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// write makes a log of n decisions between a segment's first and last line.
func write(t testing.TB, file string, n int) {
	t.Helper()
	l, err := Open(file)
	must(t, err)
	must(t, l.Append(NewChange("web", KindSegment, "sandbox attached")))
	for i := range n {
		e := NewNetwork("web", ActivityOpen)
		e.Dst = &Endpoint{Hostname: fmt.Sprintf("h%d.example.org", i), Port: 443}
		must(t, l.Append(e))
	}
	must(t, l.Append(NewChange("web", KindEnd, "sandbox ended")))
	must(t, l.Close())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read returns the lines of a log, each with its line feed, and its head.
func read(t testing.TB, file string) ([][]byte, *Head) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	head, err := ReadHead(file)
	must(t, err)
	return bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")), head
}

// faults returns what Verify says about lines, as one text.
func faults(t testing.TB, lines [][]byte, head *Head) string {
	t.Helper()
	rep, err := Verify(bytes.NewReader(append(bytes.Join(lines, nil), '\n')), head)
	must(t, err)
	var all []string
	for _, f := range rep.Faults {
		all = append(all, f.String())
	}
	return strings.Join(all, "\n")
}

// A log that nobody touched verifies, over any number of sandboxes.
func TestSegmentsAreOneChain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	for range 3 {
		write(t, file, 4)
	}
	rep, err := VerifyFile(file)
	must(t, err)
	if len(rep.Faults) > 0 || rep.Segments != 3 || rep.Lines != 18 || rep.Open {
		t.Errorf("%+v", rep)
	}
	for _, name := range []string{file, HeadFile(file)} {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, fi.Mode(), err)
		}
	}
}

// Law 7, second half: whatever is done to a log is found, and where.
func TestVerifyFinds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	write(t, file, 6)
	for _, c := range []struct {
		done  string
		do    func(l [][]byte) [][]byte
		found string
	}{
		{"nothing", func(l [][]byte) [][]byte { return l }, ""},
		{"a host changed", func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte("h1"), []byte("h9"), 1)
			return l
		}, "line 4: the line before it is not the one that was written there"},
		{"the last line changed", func(l [][]byte) [][]byte {
			l[7] = bytes.Replace(l[7], []byte("ended"), []byte("ENDED"), 1)
			return l
		}, "line 8: the last line is not the one that was written there"},
		{"a line removed", func(l [][]byte) [][]byte { return slices.Delete(l, 3, 4) }, "line 4: line number 4 is missing before it"},
		{"the first line removed", func(l [][]byte) [][]byte { return l[1:] }, "line 1: line number 1 is missing before it"},
		{"a line doubled", func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[2]) },
			"line 4: line number 3 stands where 4 belongs: doubled, moved or inserted"},
		{"two lines swapped", func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l }, "line 4: line number 4 is missing before it"},
		{"a stranger's line inserted", func(l [][]byte) [][]byte { return slices.Insert(l, 5, []byte("{}\n")) }, "line 6: not a line of this log"},
		{"the tail cut off", func(l [][]byte) [][]byte { return append(l[:5:5], bytes.TrimSuffix(l[5], []byte("\n"))) }, "line 6: line numbers 7 to 8 are cut off"},
		{"a line added", func(l [][]byte) [][]byte { return append(l, []byte("\n"), forged(l)) }, "line 9: line numbers 9 to 9 were added"},
		{"everything removed", func(l [][]byte) [][]byte { return nil }, "line 1: not a line of this log"},
	} {
		t.Run(c.done, func(t *testing.T) {
			lines, head := read(t, file)
			got := faults(t, c.do(lines), head)
			if first, _, _ := strings.Cut(got, "\n"); first != c.found {
				t.Errorf("found %q, want %q", got, c.found)
			}
		})
	}
	lines, _ := read(t, file)
	if got := faults(t, lines, nil); !strings.Contains(got, "the head file is missing") {
		t.Errorf("without a head: %q", got)
	}
}

// forged is a line that continues the chain as ours would.
func forged(lines [][]byte) []byte {
	last := bytes.TrimSuffix(lines[len(lines)-1], []byte("\n"))
	k, _ := parseLink(last)
	line, _ := encode(nil, NewChange("web", KindNote, "nothing happened"), k.seq+1, hash(last), time.Now())
	return bytes.TrimSuffix(line, []byte("\n"))
}

// A log goes on after a crash, and says what the crash did.
func TestRecovery(t *testing.T) {
	for _, c := range []struct {
		crash     string
		do        func(t *testing.T, file string)
		recovered string // what Open says
		broken    bool   // Verify still sees it afterwards
	}{
		{"between the line and the head", func(t *testing.T, file string) {
			lines, head := read(t, file)
			last := int64(len(lines[len(lines)-1])) + 1
			k, _ := parseLink(lines[len(lines)-2])
			setHead(t, file, Head{k.seq, hash(bytes.TrimSuffix(lines[len(lines)-2], []byte("\n"))), int64(len(lines[len(lines)-2])), head.Offset - last})
		}, "", false},
		{"in the middle of a line", func(t *testing.T, file string) { add(t, file, `{"class_uid":40`) }, "line 7 was unfinished", false},
		{"which left zeros", func(t *testing.T, file string) { add(t, file, "\x00\x00\x00\x00") }, "line 7 was unfinished", false},
		{"which lost lines", func(t *testing.T, file string) {
			lines, head := read(t, file)
			must(t, os.Truncate(file, head.Offset-int64(len(lines[len(lines)-1]))-1))
		}, "the log did not end with line 6, as its head says", true},
		{"which lost half a line", func(t *testing.T, file string) {
			_, head := read(t, file)
			must(t, os.Truncate(file, head.Offset-9))
		}, "the log did not end with line 6, as its head says", true},
		{"which lost the head", func(t *testing.T, file string) { must(t, os.Remove(HeadFile(file))) }, "the head file was missing", false},
		{"which spoiled the head", func(t *testing.T, file string) { must(t, os.WriteFile(HeadFile(file), []byte("??"), 0o600)) }, "the head file was unreadable", false},
		{"and a stranger's line", func(t *testing.T, file string) { add(t, file, "hello\n") }, "what follows line 6 does not belong to the log", true},
	} {
		t.Run(c.crash, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "web.jsonl")
			write(t, file, 4)
			c.do(t, file)
			l, err := Open(file)
			must(t, err)
			if got := strings.Join(l.Recovered(), "; "); !strings.HasPrefix(got, c.recovered) || c.recovered == "" && got != "" {
				t.Errorf("Open says %q, want %q", got, c.recovered)
			}
			must(t, l.Close())
			write(t, file, 2)
			rep, err := VerifyFile(file)
			must(t, err)
			if broken := len(rep.Faults) > 0; broken != c.broken {
				t.Errorf("after it the log has faults %v", rep.Faults)
			}
		})
	}
}

func add(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, err)
	must(t, f.Close())
}

func setHead(t *testing.T, file string, h Head) {
	t.Helper()
	f, err := os.OpenFile(HeadFile(file), os.O_WRONLY, 0)
	must(t, err)
	must(t, writeHead(f, h))
	must(t, f.Close())
}

// A disk that is full refuses, half a line is sealed once there is room, and
// the chain holds over all of it.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("a tmpfs is needed: %v", err)
		}
		t.Skipf("a tmpfs is needed: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	file, ballast := filepath.Join(dir, "web.jsonl"), filepath.Join(dir, "ballast")
	l, err := Open(file)
	must(t, err)
	defer l.Close()
	must(t, l.Append(NewChange("web", KindSegment, "sandbox attached")))
	fill(t, ballast)
	long := NewNetwork("web", ActivityRefuse)
	long.Unmapped.Detail = strings.Repeat("x", 8000)
	for range 3 { // again and again: the piece that is unfinished grows
		if err := l.Append(long); err == nil {
			t.Fatal("a full disk takes a line")
		}
		if l.Fault() == nil {
			t.Error("the fault is forgotten")
		}
	}
	must(t, os.Remove(ballast))
	must(t, l.Append(NewNetwork("web", ActivityOpen)))
	if err := l.Fault(); err != nil {
		t.Errorf("after a line was written the log still has %v", err)
	}
	must(t, l.Append(NewChange("web", KindEnd, "sandbox ended")))
	must(t, l.Close())
	rep, err := VerifyFile(file)
	must(t, err)
	if len(rep.Faults) > 0 || len(rep.Notes) == 0 {
		t.Errorf("faults %v, notes %v", rep.Faults, rep.Notes)
	}
}

// fill takes all room that a file system has.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	must(t, err)
	defer f.Close()
	for _, size := range []int{4096, 1} {
		for {
			if _, err := f.Write(make([]byte, size)); err != nil {
				break
			}
		}
	}
}

// Only one gateway writes a log at a time; the next waits for it.
func TestOneWriter(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	first, err := Open(file)
	must(t, err)
	second := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		close(begun)
		l, err := Open(file)
		if err == nil {
			err = l.Close()
		}
		second <- err
	}()
	<-begun
	select {
	case err := <-second:
		t.Errorf("two gateways write one log: %v", err)
	default:
	}
	must(t, first.Close())
	must(t, <-second)
}

// A log is never written through a link that somebody left in its place.
func TestNoLink(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "passwd")
	must(t, os.WriteFile(target, nil, 0o600))
	must(t, os.Symlink(target, filepath.Join(dir, "web.jsonl")))
	if l, err := Open(filepath.Join(dir, "web.jsonl")); err == nil {
		l.Close()
		t.Error("a symbolic link was followed")
	}
}

// Lines reach the disk 100 ms after the first that waits.
func TestSync(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(file)
		must(t, err)
		must(t, l.Append(NewChange("web", KindSegment, "")))
		must(t, l.Append(NewChange("web", KindNote, "")))
		if !waiting(l) {
			t.Error("nothing waits for the disk")
		}
		<-time.After(syncDelay) // the bubble's time
		synctest.Wait()
		if waiting(l) {
			t.Error("after 100 ms something still waits for the disk")
		}
		must(t, l.Close())
	})
}

// Nobody waits for a slow disk, and what is appended meanwhile reaches it next: by
// one sync at a time, however long each takes.
func TestSlowDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(file)
		must(t, err)
		// No line is appended in the moment in which a sync begins.
		const often, slow = syncDelay * 7 / 10, 10*syncDelay + syncDelay/20
		syncs, atOnce := 0, 0
		l.toDisk = func(...*os.File) error {
			if !l.mu.TryLock() {
				t.Error("lines wait for the disk")
				return nil
			}
			l.mu.Unlock()
			syncs++
			if atOnce++; atOnce > 1 {
				t.Error("two syncs at once")
			}
			<-time.After(slow)
			atOnce--
			return nil
		}
		for range 50 { // for three times as long as a sync takes
			must(t, l.Append(NewChange("web", KindNote, "")))
			<-time.After(often)
		}
		if l.Lag() < syncDelay || l.Lag() > 2*slow {
			t.Errorf("while the disk is slow, lines are said to have waited for %v", l.Lag())
		}
		<-time.After(2 * slow)
		synctest.Wait()
		if waiting(l) || l.Lag() != 0 {
			t.Error("what was appended during a sync never reached the disk")
		}
		if syncs < 3 {
			t.Errorf("%d syncs", syncs)
		}
		l.toDisk = datasync
		must(t, l.Close())
	})
}

func waiting(l *Log) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unsynced
}

// What a program says cannot reach a terminal as anything but letters.
func TestAgentTextIsHarmless(t *testing.T) {
	hostile := "a\x1b[2Jb\u202etxt.exe\u2066\u2028\u0085\x7f\x9b\xff\x00\r\n\"}\u200b\U000e0041é"
	n := NewNetwork("web", ActivityRefuse)
	n.Dst = &Endpoint{Hostname: hostile}
	n.Actor = &Actor{Process: Process{Name: hostile, File: NewFile(hostile)}}
	n.Unmapped.Detail = hostile
	line, err := encode(nil, n, 1, genesis, time.Now())
	must(t, err)
	for i, c := range line[:len(line)-1] {
		if c < 0x20 || c > 0x7e {
			t.Fatalf("byte %d of the line is %#x", i, c)
		}
	}
	var back Network
	must(t, json.Unmarshal(line, &back))
	if want := string([]rune(hostile)); back.Unmapped.Detail != want {
		t.Errorf("the text is %q, want %q", back.Unmapped.Detail, want)
	}
}

// A follower gets every line once, those that were there and those that come.
func TestFollow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.jsonl")
	write(t, file, 3) // another sandbox of the same name, not followed
	l, err := Open(file)
	must(t, err)
	first := l.End().Sequence + 1
	must(t, l.Append(NewChange("web", KindSegment, ""), NewChange("web", KindNote, "")))
	seen, done := make(chan uint64), make(chan error)
	go func() {
		done <- l.Follow(context.Background(), first, func(line []byte) error {
			k, _ := parseLink(bytes.TrimSuffix(line, []byte("\n")))
			seen <- k.seq
			return nil
		})
	}()
	for want := first + 1; want < first+100; want++ {
		if got := <-seen; got != want {
			t.Fatalf("line %d came, want %d", got, want)
		}
		must(t, l.Append(NewChange("web", KindNote, "")))
	}
	must(t, l.Close())
	if got := <-seen; got != first+100 {
		t.Errorf("the last line is %d", got)
	}
	must(t, <-done)
}

// FuzzVerify holds the law: one change of any kind to a log is a fault.
func FuzzVerify(f *testing.F) {
	file := filepath.Join(f.TempDir(), "web.jsonl")
	write(f, file, 6)
	good, err := os.ReadFile(file)
	must(f, err)
	head, err := ReadHead(file)
	must(f, err)
	for op := range uint8(6) {
		f.Add(op, uint16(3), uint16(5), byte('x'))
		f.Add(op, uint16(len(good)-1), uint16(0), byte('\n'))
	}
	f.Fuzz(func(t *testing.T, op uint8, at, other uint16, c byte) {
		bad := tamper(good, op, int(at), int(other), c)
		rep, err := Verify(bytes.NewReader(bad), head)
		must(t, err)
		if same := bytes.Equal(bad, good); same != (len(rep.Faults) == 0) {
			t.Errorf("operation %d at %d and %d with %q: the same %v, faults %v", op%6, at, other, c, same, rep.Faults)
		}
	})
}

// tamper changes one thing.
func tamper(good []byte, op uint8, at, other int, c byte) []byte {
	bad := bytes.Clone(good)
	lines := bytes.SplitAfter(bad[:len(bad)-1], []byte("\n"))
	lines[len(lines)-1] = append(bytes.Clone(lines[len(lines)-1]), '\n')
	i, j := at%len(lines), other%len(lines)
	switch op % 6 {
	case 0: // a byte changed
		bad[at%len(bad)] = c
		return bad
	case 1: // a byte inserted
		return slices.Insert(bad, at%len(bad), c)
	case 2: // cut off
		return bad[:at%len(bad)]
	case 3: // a line removed
		lines = slices.Delete(lines, i, i+1)
	case 4: // two lines swapped
		lines[i], lines[j] = lines[j], lines[i]
	case 5: // a line doubled elsewhere
		lines = slices.Insert(lines, j, lines[i])
	}
	return bytes.Join(lines, nil)
}

// FuzzRecover holds the law: whatever stands in the two files, the log either
// says that it cannot be opened or goes on, and what goes on verifies from
// there.
func FuzzRecover(f *testing.F) {
	file := filepath.Join(f.TempDir(), "web.jsonl")
	write(f, file, 2)
	log, _ := os.ReadFile(file)
	head, _ := os.ReadFile(HeadFile(file))
	f.Add(log, head)
	f.Add(log[:len(log)-4], head)
	f.Add([]byte("\n"), []byte{})
	f.Add(append(bytes.Clone(log), 0), head)
	f.Fuzz(func(t *testing.T, log, head []byte) {
		file := filepath.Join(t.TempDir(), "web.jsonl")
		must(t, os.WriteFile(file, log, 0o600))
		must(t, os.WriteFile(HeadFile(file), head, 0o600))
		l, err := Open(file)
		must(t, err)
		clean := len(l.Recovered()) == 0
		before := l.End()
		must(t, l.Append(NewChange("web", KindNote, "one"), NewChange("web", KindNote, "two")))
		must(t, l.Close())
		now, _ := os.ReadFile(file)
		if !bytes.HasPrefix(now, log) {
			t.Fatal("something that stood in the log was changed")
		}
		kept, err := ReadHead(file)
		must(t, err)
		if kept.Offset != int64(len(now)) || kept.Sequence < before.Sequence+2 {
			t.Errorf("head %+v of a log of %d bytes", kept, len(now))
		}
		again, err := Open(file)
		must(t, err)
		if len(again.Recovered()) > 0 {
			t.Errorf("clean %v: it recovers twice: %q", clean, again.Recovered())
		}
		must(t, again.Close())
	})
}

func BenchmarkAppend(b *testing.B) {
	l, err := Open(filepath.Join(b.TempDir(), "web.jsonl"))
	must(b, err)
	defer l.Close()
	for b.Loop() {
		n := NewNetwork("web", ActivityOpen)
		n.Dst = &Endpoint{Hostname: "api.example.org", Port: 443}
		must(b, l.Append(n))
	}
}
