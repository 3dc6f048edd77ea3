// Checks the histories of devices on several servers with Porcupine: is there an order of the operations, each at a
// moment between its call and its return, in which a device never has two holders?
//
// It reads one JSON object a line from standard input and writes one JSON object with the verdict.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// operation is what a client has seen.
type operation struct {
	Device string `json:"device"`
	// connect: the answer is in Status. act: a message reached the connection. end: the connection has ended.
	Kind string `json:"kind"`
	// Names the connection within its device.
	Conn int `json:"conn"`
	// 101, 409 or 503; 0: the client does not know the answer, or nothing follows from it.
	Status int `json:"status"`
	// Term and number of the generation, for a connect with 101; 0, 0: unknown.
	Term   int64 `json:"term"`
	Number int64 `json:"number"`
	// Monotonic nanoseconds.
	Call   int64 `json:"call"`
	Return int64 `json:"return"`
}

// state is that of one device: the connection that holds it (0: none), and the last generation that is known.
type state struct {
	holder       int
	term, number int64
}

type verdict struct {
	Histories  int      `json:"histories"`
	Operations int      `json:"operations"`
	Violations []string `json:"violations"`
	Unknown    []string `json:"unknown"`
}

var model = porcupine.Model{
	Init: func() interface{} { return state{} },
	Step: func(before, input, _ interface{}) (bool, interface{}) {
		held, does := before.(state), input.(operation)
		switch does.Kind {
		case "connect":
			switch does.Status {
			case 101:
				if held.holder != 0 {
					return false, held
				}
				if does.Term != 0 && !later(does, held) {
					return false, held
				}
				after := state{does.Conn, held.term, held.number}
				if does.Term != 0 {
					after.term, after.number = does.Term, does.Number
				}
				return true, after
			case 409:
				// A 409 without a holder is as wrong as two holders.
				return held.holder != 0, held
			}
			return true, held
		case "act":
			return held.holder == does.Conn, held
		}
		if held.holder == does.Conn {
			held.holder = 0
		}
		return true, held
	},
	DescribeOperation: func(input, _ interface{}) string {
		does := input.(operation)
		return fmt.Sprintf("%s %d -> %d (%d.%d)", does.Kind, does.Conn, does.Status, does.Term, does.Number)
	},
}

func later(one operation, than state) bool {
	return one.Term > than.term || one.Term == than.term && one.Number > than.number
}

func main() {
	histories := map[string][]porcupine.Operation{}
	found := verdict{Violations: []string{}, Unknown: []string{}}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	for lines.Scan() {
		var one operation
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		client := len(histories[one.Device])
		histories[one.Device] = append(histories[one.Device],
			porcupine.Operation{ClientId: client, Input: one, Call: one.Call, Return: one.Return})
		found.Operations++
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for device, history := range histories {
		found.Histories++
		switch porcupine.CheckOperationsTimeout(model, history, 20*time.Second) {
		case porcupine.Illegal:
			found.Violations = append(found.Violations, device)
		case porcupine.Unknown:
			found.Unknown = append(found.Unknown, device)
		}
	}
	sort.Strings(found.Violations)
	sort.Strings(found.Unknown)
	_ = json.NewEncoder(os.Stdout).Encode(found)
}
