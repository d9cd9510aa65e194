package limits

import (
	"flag"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite ../LIMITS.md")

// The document is made of the table.
func TestDocument(t *testing.T) {
	const file = "../LIMITS.md"
	got := Markdown()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what the table says: make golden\n%s", file, got)
	}
}

// Every limit says what it bounds, how much, and what happens there.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, g := range Table {
		for _, l := range g.Limits {
			if l.What == "" || l.Then == "" || l.value() == "" || seen[l.What] {
				t.Errorf("%s: %+v", g.Name, l)
			}
			seen[l.What] = true
		}
	}
	for _, c := range []struct {
		l    Limit
		want string
	}{
		{Limit{Value: 65536}, "65,536"}, {Limit{Value: 500}, "500"}, {Limit{Value: 1000000}, "1,000,000"},
		{Limit{Value: 64 << 10, Unit: "bytes"}, "64 KiB"}, {Limit{Value: 16 << 20, Unit: "bytes"}, "16 MiB"},
		{Limit{Value: 300 * time.Millisecond}, "300ms"}, {Limit{Value: 10 * time.Second}, "10s"}, {Limit{Value: 5 * time.Minute}, "5m"},
	} {
		if got := c.l.value(); got != c.want {
			t.Errorf("%v is written %q, want %q", c.l.Value, got, c.want)
		}
	}
}
