import signal, sys, tempfile, traceback, collections, warnings, os, logging
sys.path.insert(0,'tests'); import conftest
from pathlib import Path
from reliability.broken_data import *
from ptft_recipes.data import DatasetArguments, load_splits
from ptft_recipes.reading import read_rows
from ptft_recipes.corpora import load_corpora
from ptft_recipes.errors import InputError
import datasets; datasets.disable_progress_bars()
kind, lo, hi = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
class Hang(BaseException): pass
def h(*a): raise Hang()
signal.signal(signal.SIGALRM, h)
c=collections.Counter(); shown=collections.Counter()
for seed in range(lo,hi):
    with tempfile.TemporaryDirectory() as d:
        d=Path(d)
        case = make_place(seed,d) if kind=='place' else make_case(kind,seed,d)
        entry=['rows','splits','corpora','stream'][seed%4] if case.label_column is None else ['rows','splits','splits'][seed%3]
        doc=case.label_column is None
        signal.alarm(5)
        msg=''
        try:
            try:
                if entry=='rows':
                    r=read_rows(case.path,[*case.text_columns,*([] if doc else ['label'])],documents=doc)
                    msg=compare_rows(case,r,doc)
                elif entry=='splits':
                    msg=compare_splits(case,*load_splits(DatasetArguments(train_file=str(case.path)),case.text_columns,case.label_column,case.problem_type,case.separator))
                else:
                    case.text_columns=case.text_columns[:1]
                    a,rep=load_corpora(DatasetArguments(train_file=str(case.path),max_eval_samples=2),case.text_columns[0],streaming=entry=='stream')
                    if entry=='stream': list(a['train'])
            finally: signal.alarm(0)
            out='OK'
        except InputError as e:
            out='refused'; m=str(e)
            if '\n' in m or '\r' in m or len(m.replace(str(case.path),''))>1000: msg=f'bad message {len(m)} {m[:150]!r} .. {m[-100:]!r}'
            if case.valid: msg='refused valid: '+m[:300]
        except Hang: out='HANG'; msg='hang'
        except BaseException as e:
            tb=traceback.extract_tb(e.__traceback__)
            own=[f"{Path(f.filename).name}:{f.lineno}" for f in tb if 'ptft_recipes' in f.filename or 'broken' in f.filename]
            out='CRASH'; msg=f"{type(e).__name__} {str(e)[:100]} {own[-2:]}"
        c[out]+=1
        if msg:
            key=(out,msg[:40])
            shown[key]+=1
            if shown[key]<=2: print(seed,entry,out,case.done,case.problem_type,case.separator,'|',msg)
print(kind,c,dict(shown) and sum(shown.values()))
