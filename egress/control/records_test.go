package control

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

var someRecords = Records{N: 7, List: []Record{
	{
		Verdict: Allow, Proto: "tls", Host: "api.example.org", Port: 443, Rule: "policy.yaml:3", Generation: 1, Request: "r-1",
		Src: netip.MustParseAddrPort("198.18.0.2:40000"), Dst: netip.MustParseAddrPort("198.18.3.4:443"),
	},
	{
		Verdict: End, Proto: "tls", Host: "api.example.org", Port: 443, Rule: "policy.yaml:3", Generation: 1, Request: "r-1",
		Addr: netip.MustParseAddrPort("[2001:db8::1]:443"), Sent: 1 << 40, Got: 5, Lasted: time.Second,
	},
	everything(),
	{Verdict: Refuse, Reason: "not-listed", Detail: "SNI \"x\"", Method: "GET", Count: 30},
	{},
}}

// everything is a record with something in each field that there is.
func everything() (r Record) {
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name)
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(-i))
		case reflect.Uint16, reflect.Uint64:
			f.SetUint(uint64(i))
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Struct:
			f.Set(reflect.ValueOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), uint16(i))))
		}
	}
	return r
}

// What one side says about connections is what the other hears.
func TestRecordsArrive(t *testing.T) {
	ours, theirs := pair(t)
	long := someRecords
	long.List = append([]Record{{Detail: strings.Repeat("x", 3*packetSize)}}, long.List...)
	for _, sent := range []Records{someRecords, {N: 1, List: []Record{}}, long} {
		check(t, ours.Send(ToMonitorFromWorker{Records: &sent}))
		var m ToMonitorFromWorker
		_, err := theirs.Recv(&m)
		check(t, err)
		if !reflect.DeepEqual(*m.Records, sent) {
			t.Errorf("sent %+v, received %+v", sent, *m.Records)
		}
	}
	for _, sent := range []Written{{N: 1 << 60}, {N: 1, Fault: "disk full"}} {
		check(t, theirs.Send(ToWorker{Written: &sent}))
		var m ToWorker
		_, err := ours.Recv(&m)
		check(t, err)
		if *m.Written != sent {
			t.Errorf("sent %+v, received %+v", sent, *m.Written)
		}
	}
}

// A message of any size up to the limit comes whole, with its descriptors, and
// leaves the conversation in order.
func TestMessagesOfAnySize(t *testing.T) {
	ours, theirs := pair(t)
	null := openNull(t)
	for _, n := range []int{0, packetSize - 64, packetSize, packetSize + 1, MaxMessage - 64} {
		want := FromMonitor{Fault: strings.Repeat("x", n)}
		sent := make(chan error)
		go func() { sent <- ours.Send(want, null, null) }()
		var m FromMonitor
		files, err := theirs.Recv(&m)
		check(t, err)
		check(t, <-sent)
		if m.Fault != want.Fault || len(files) != 2 {
			t.Errorf("of %d bytes came %d, with %d descriptors", n, len(m.Fault), len(files))
		}
		CloseAll(files)
	}
	if err := ours.Send(FromMonitor{Fault: strings.Repeat("x", MaxMessage)}); err == nil {
		t.Error("a message longer than the limit was sent")
	}
	ours.Close()
	if _, err := theirs.Recv(new(FromMonitor)); err == nil || err.Error() != "EOF" {
		t.Errorf("the end of the conversation is %v", err)
	}
}

// Whatever a worker sends as records is understood as one thing only: said
// again, it means the same.
func FuzzRecords(f *testing.F) {
	f.Add(someRecords.appendTo(nil))
	f.Add((&Records{}).appendTo(nil))
	f.Add([]byte{markRecords, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m ToMonitorFromWorker
		if len(b) == 0 || b[0] != markRecords || understand(b, &m) != nil {
			return
		}
		again := m.Records.appendTo(nil)
		var r Records
		if err := r.parse(again); err != nil || !reflect.DeepEqual(r, *m.Records) {
			t.Errorf("%+v becomes %+v, %v", *m.Records, r, err)
		}
		if len(again) > len(b) {
			t.Errorf("%d bytes hold what takes %d", len(b), len(again))
		}
		if bytes.Equal(again, b) && len(r.List) > MaxRecords {
			t.Errorf("%d records in one message", len(r.List))
		}
	})
}
